from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="NicChange")


@_attrs_define
class NicChange:
    """Change of one NIC.

    Attributes:
        nic (int): Which, 0 is the first.
        connected (bool | None | Unset): Plug its cable in or pull it, also while the VM runs.
        network (None | str | Unset):
        tap (None | str | Unset):
    """

    nic: int
    connected: bool | None | Unset = UNSET
    network: None | str | Unset = UNSET
    tap: None | str | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        nic = self.nic

        connected: bool | None | Unset
        if isinstance(self.connected, Unset):
            connected = UNSET
        else:
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

        field_dict.update(
            {
                "nic": nic,
            }
        )
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
        nic = d.pop("nic")

        def _parse_connected(data: object) -> bool | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(bool | None | Unset, data)

        connected = _parse_connected(d.pop("connected", UNSET))

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

        nic_change = cls(
            nic=nic,
            connected=connected,
            network=network,
            tap=tap,
        )

        return nic_change
