from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="Image")


@_attrs_define
class Image:
    """An image in the datastore.

    Attributes:
        agent (bool): It has a guest agent.
        allocated_bytes (int): Space that its files take, bytes.
        bootable (bool): It can boot by itself: it has a kernel.
        description (str): What it was made of, for a person.
        name (str): Its name.
        disk_bytes (int | None | Unset): Virtual size of its disk, bytes; none without a disk.
    """

    agent: bool
    allocated_bytes: int
    bootable: bool
    description: str
    name: str
    disk_bytes: int | None | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        agent = self.agent

        allocated_bytes = self.allocated_bytes

        bootable = self.bootable

        description = self.description

        name = self.name

        disk_bytes: int | None | Unset
        if isinstance(self.disk_bytes, Unset):
            disk_bytes = UNSET
        else:
            disk_bytes = self.disk_bytes

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "agent": agent,
                "allocated_bytes": allocated_bytes,
                "bootable": bootable,
                "description": description,
                "name": name,
            }
        )
        if disk_bytes is not UNSET:
            field_dict["disk_bytes"] = disk_bytes

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        agent = d.pop("agent")

        allocated_bytes = d.pop("allocated_bytes")

        bootable = d.pop("bootable")

        description = d.pop("description")

        name = d.pop("name")

        def _parse_disk_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        disk_bytes = _parse_disk_bytes(d.pop("disk_bytes", UNSET))

        image = cls(
            agent=agent,
            allocated_bytes=allocated_bytes,
            bootable=bootable,
            description=description,
            name=name,
            disk_bytes=disk_bytes,
        )

        image.additional_properties = d
        return image

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
