from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.snapshot_memory import SnapshotMemory
from ..types import UNSET, Unset

T = TypeVar("T", bound="Snapshot")


@_attrs_define
class Snapshot:
    """A state to which a VM can return.

    Attributes:
        created_at_ms (int): Milliseconds since 1970.
        current (bool): The VM continues it.
        description (str): What it is.
        id (str): Its id.
        io_held_us (int): Time that the VM's disks were held, microseconds.
        layers (list[str]): Ids of the top layers of its disks.
        memory (SnapshotMemory): Whether a snapshot has the memory of its instant.
        name (str): Its name.
        stun_us (int): Time that the VM stood still for it, microseconds.
        vm (str): Name of its VM.
        vm_id (str): Id of its VM.
        memory_bytes (int | None | Unset): Space that its memory takes, bytes.
        parent (None | str | Unset): Id of the snapshot that it continues.
    """

    created_at_ms: int
    current: bool
    description: str
    id: str
    io_held_us: int
    layers: list[str]
    memory: SnapshotMemory
    name: str
    stun_us: int
    vm: str
    vm_id: str
    memory_bytes: int | None | Unset = UNSET
    parent: None | str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        created_at_ms = self.created_at_ms

        current = self.current

        description = self.description

        id = self.id

        io_held_us = self.io_held_us

        layers = self.layers

        memory = self.memory.value

        name = self.name

        stun_us = self.stun_us

        vm = self.vm

        vm_id = self.vm_id

        memory_bytes: int | None | Unset
        if isinstance(self.memory_bytes, Unset):
            memory_bytes = UNSET
        else:
            memory_bytes = self.memory_bytes

        parent: None | str | Unset
        if isinstance(self.parent, Unset):
            parent = UNSET
        else:
            parent = self.parent

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "created_at_ms": created_at_ms,
                "current": current,
                "description": description,
                "id": id,
                "io_held_us": io_held_us,
                "layers": layers,
                "memory": memory,
                "name": name,
                "stun_us": stun_us,
                "vm": vm,
                "vm_id": vm_id,
            }
        )
        if memory_bytes is not UNSET:
            field_dict["memory_bytes"] = memory_bytes
        if parent is not UNSET:
            field_dict["parent"] = parent

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        created_at_ms = d.pop("created_at_ms")

        current = d.pop("current")

        description = d.pop("description")

        id = d.pop("id")

        io_held_us = d.pop("io_held_us")

        layers = cast(list[str], d.pop("layers"))

        memory = SnapshotMemory(d.pop("memory"))

        name = d.pop("name")

        stun_us = d.pop("stun_us")

        vm = d.pop("vm")

        vm_id = d.pop("vm_id")

        def _parse_memory_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        memory_bytes = _parse_memory_bytes(d.pop("memory_bytes", UNSET))

        def _parse_parent(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        parent = _parse_parent(d.pop("parent", UNSET))

        snapshot = cls(
            created_at_ms=created_at_ms,
            current=current,
            description=description,
            id=id,
            io_held_us=io_held_us,
            layers=layers,
            memory=memory,
            name=name,
            stun_us=stun_us,
            vm=vm,
            vm_id=vm_id,
            memory_bytes=memory_bytes,
            parent=parent,
        )

        snapshot.additional_properties = d
        return snapshot

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
