from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="NicAddressRequest")


@_attrs_define
class NicAddressRequest:
    """Static addresses of one NIC, set by the guest's agent.

    Attributes:
        address (str):
        nic (int): Number of the NIC, from 0.
        dns (list[str] | Unset):
        gateway (None | str | Unset):
    """

    address: str
    nic: int
    dns: list[str] | Unset = UNSET
    gateway: None | str | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        address = self.address

        nic = self.nic

        dns: list[str] | Unset = UNSET
        if not isinstance(self.dns, Unset):
            dns = self.dns

        gateway: None | str | Unset
        if isinstance(self.gateway, Unset):
            gateway = UNSET
        else:
            gateway = self.gateway

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "address": address,
                "nic": nic,
            }
        )
        if dns is not UNSET:
            field_dict["dns"] = dns
        if gateway is not UNSET:
            field_dict["gateway"] = gateway

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        address = d.pop("address")

        nic = d.pop("nic")

        dns = cast(list[str], d.pop("dns", UNSET))

        def _parse_gateway(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        gateway = _parse_gateway(d.pop("gateway", UNSET))

        nic_address_request = cls(
            address=address,
            nic=nic,
            dns=dns,
            gateway=gateway,
        )

        return nic_address_request
