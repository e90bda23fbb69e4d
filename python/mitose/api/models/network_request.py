from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="NetworkRequest")


@_attrs_define
class NetworkRequest:
    """Make a network.

    Attributes:
        name (str):
        bridge (None | str | Unset):
        isolated (bool | Unset): The daemon makes a bridge for it that leads nowhere else.
    """

    name: str
    bridge: None | str | Unset = UNSET
    isolated: bool | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        name = self.name

        bridge: None | str | Unset
        if isinstance(self.bridge, Unset):
            bridge = UNSET
        else:
            bridge = self.bridge

        isolated = self.isolated

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "name": name,
            }
        )
        if bridge is not UNSET:
            field_dict["bridge"] = bridge
        if isolated is not UNSET:
            field_dict["isolated"] = isolated

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        name = d.pop("name")

        def _parse_bridge(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        bridge = _parse_bridge(d.pop("bridge", UNSET))

        isolated = d.pop("isolated", UNSET)

        network_request = cls(
            name=name,
            bridge=bridge,
            isolated=isolated,
        )

        return network_request
