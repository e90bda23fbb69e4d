from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="NicDetail")


@_attrs_define
class NicDetail:
    """One NIC of a VM.

    Attributes:
        mac (str):
        address (None | str | Unset): Static address with prefix length that its agent was told.
        connected (bool | Unset): Its cable is plugged into one of them.
        network (None | str | Unset): Id of the network that it is on: the daemon makes its TAP interface.
        tap (None | str | Unset): TAP interface that its user made.
    """

    mac: str
    address: None | str | Unset = UNSET
    connected: bool | Unset = UNSET
    network: None | str | Unset = UNSET
    tap: None | str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        mac = self.mac

        address: None | str | Unset
        if isinstance(self.address, Unset):
            address = UNSET
        else:
            address = self.address

        connected = self.connected

        network: None | str | Unset
        if isinstance(self.network, Unset):
            network = UNSET
        else:
            network = self.network

        tap: None | str | Unset
        if isinstance(self.tap, Unset):
            tap = UNSET
        else:
            tap = self.tap

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "mac": mac,
            }
        )
        if address is not UNSET:
            field_dict["address"] = address
        if connected is not UNSET:
            field_dict["connected"] = connected
        if network is not UNSET:
            field_dict["network"] = network
        if tap is not UNSET:
            field_dict["tap"] = tap

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        mac = d.pop("mac")

        def _parse_address(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        address = _parse_address(d.pop("address", UNSET))

        connected = d.pop("connected", UNSET)

        def _parse_network(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        network = _parse_network(d.pop("network", UNSET))

        def _parse_tap(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        tap = _parse_tap(d.pop("tap", UNSET))

        nic_detail = cls(
            mac=mac,
            address=address,
            connected=connected,
            network=network,
            tap=tap,
        )

        nic_detail.additional_properties = d
        return nic_detail

    @property
    def additional_keys(self) -> list[str]:
        return list(self.additional_properties.keys())

    def __getitem__(self, key: str) -> Any:
        return self.additional_properties[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.additional_properties[key] = value

    def __delitem__(self, key: str) -> None:
        del self.additional_properties[key]

    def __contains__(self, key: str) -> bool:
        return key in self.additional_properties
