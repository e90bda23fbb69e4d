from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

T = TypeVar("T", bound="WouldMake")


@_attrs_define
class WouldMake:
    """A VM that a request would make.

    Attributes:
        disk_bytes (int): Space that its disks take at once, bytes.
        macs (list[None | str]): Hardware addresses that are given; others are made.
        memory_bytes (int): Guest RAM, bytes.
        path (str): Its name behind those of its folders.
    """

    disk_bytes: int
    macs: list[None | str]
    memory_bytes: int
    path: str
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        disk_bytes = self.disk_bytes

        macs = []
        for macs_item_data in self.macs:
            macs_item: None | str
            macs_item = macs_item_data
            macs.append(macs_item)

        memory_bytes = self.memory_bytes

        path = self.path

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "disk_bytes": disk_bytes,
                "macs": macs,
                "memory_bytes": memory_bytes,
                "path": path,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        disk_bytes = d.pop("disk_bytes")

        macs = []
        _macs = d.pop("macs")
        for macs_item_data in _macs:

            def _parse_macs_item(data: object) -> None | str:
                if data is None:
                    return data
                return cast(None | str, data)

            macs_item = _parse_macs_item(macs_item_data)

            macs.append(macs_item)

        memory_bytes = d.pop("memory_bytes")

        path = d.pop("path")

        would_make = cls(
            disk_bytes=disk_bytes,
            macs=macs,
            memory_bytes=memory_bytes,
            path=path,
        )

        would_make.additional_properties = d
        return would_make

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
