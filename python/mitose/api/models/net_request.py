from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="NetRequest")


@_attrs_define
class NetRequest:
    """One NIC of a new VM.

    Attributes:
        disconnected (bool | Unset): Its cable is not plugged in.
        mac (None | str | Unset):
        network (None | str | Unset):
        tap (None | str | Unset):
    """

    disconnected: bool | Unset = UNSET
    mac: None | str | Unset = UNSET
    network: None | str | Unset = UNSET
    tap: None | str | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        disconnected = self.disconnected

        mac: None | str | Unset
        if isinstance(self.mac, Unset):
            mac = UNSET
        else:
            mac = self.mac

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

        field_dict.update({})
        if disconnected is not UNSET:
            field_dict["disconnected"] = disconnected
        if mac is not UNSET:
            field_dict["mac"] = mac
        if network is not UNSET:
            field_dict["network"] = network
        if tap is not UNSET:
            field_dict["tap"] = tap

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        disconnected = d.pop("disconnected", UNSET)

        def _parse_mac(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        mac = _parse_mac(d.pop("mac", UNSET))

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

        net_request = cls(
            disconnected=disconnected,
            mac=mac,
            network=network,
            tap=tap,
        )

        return net_request
