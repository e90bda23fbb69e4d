from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="PoolRequest")


@_attrs_define
class PoolRequest:
    """Make a resource pool.

    Attributes:
        name (str):
        memory_bytes_max (int | None | Unset):
        vms_max (int | None | Unset): Most VMs in it; any number where not given.
    """

    name: str
    memory_bytes_max: int | None | Unset = UNSET
    vms_max: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        name = self.name

        memory_bytes_max: int | None | Unset
        if isinstance(self.memory_bytes_max, Unset):
            memory_bytes_max = UNSET
        else:
            memory_bytes_max = self.memory_bytes_max

        vms_max: int | None | Unset
        if isinstance(self.vms_max, Unset):
            vms_max = UNSET
        else:
            vms_max = self.vms_max

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "name": name,
            }
        )
        if memory_bytes_max is not UNSET:
            field_dict["memory_bytes_max"] = memory_bytes_max
        if vms_max is not UNSET:
            field_dict["vms_max"] = vms_max

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        name = d.pop("name")

        def _parse_memory_bytes_max(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        memory_bytes_max = _parse_memory_bytes_max(d.pop("memory_bytes_max", UNSET))

        def _parse_vms_max(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        vms_max = _parse_vms_max(d.pop("vms_max", UNSET))

        pool_request = cls(
            name=name,
            memory_bytes_max=memory_bytes_max,
            vms_max=vms_max,
        )

        return pool_request
