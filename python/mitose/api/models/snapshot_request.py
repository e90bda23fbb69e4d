from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="SnapshotRequest")


@_attrs_define
class SnapshotRequest:
    """Make a snapshot.

    Attributes:
        name (str):
        description (str | Unset): What it is.
        memory (bool | Unset): With the memory of the instant, where the VM runs: it returns to that instant.
    """

    name: str
    description: str | Unset = UNSET
    memory: bool | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        name = self.name

        description = self.description

        memory = self.memory

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "name": name,
            }
        )
        if description is not UNSET:
            field_dict["description"] = description
        if memory is not UNSET:
            field_dict["memory"] = memory

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        name = d.pop("name")

        description = d.pop("description", UNSET)

        memory = d.pop("memory", UNSET)

        snapshot_request = cls(
            name=name,
            description=description,
            memory=memory,
        )

        return snapshot_request
