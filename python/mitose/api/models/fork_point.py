from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

T = TypeVar("T", bound="ForkPoint")


@_attrs_define
class ForkPoint:
    """A kept fork point.

    Attributes:
        children (int): All children.
        children_registered (int): Children that are registered and never started.
        children_running (int): Children that have a process.
        created_at_ms (int): Milliseconds since 1970.
        file_bytes (int): Space that its files take, bytes.
        id (str): Its id, such as `forkpoint-1`.
        io_held_us (int): Time that the parent's disks were held, microseconds.
        memory (str): `sealing`, `memory` (kept by a process), `files` (in a datastore) or `lost`.
        memory_bytes (int): Bytes of the parent's RAM.
        name (str): Its name.
        parent (str): Name of the parent, as it was then.
        parent_id (str): Id of the parent; it may be gone.
        quiesced (bool): The guest had been brought to rest.
        stun_us (int): Time that the parent stood still for it, microseconds.
        version (int): Rises with each change.
    """

    children: int
    children_registered: int
    children_running: int
    created_at_ms: int
    file_bytes: int
    id: str
    io_held_us: int
    memory: str
    memory_bytes: int
    name: str
    parent: str
    parent_id: str
    quiesced: bool
    stun_us: int
    version: int
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        children = self.children

        children_registered = self.children_registered

        children_running = self.children_running

        created_at_ms = self.created_at_ms

        file_bytes = self.file_bytes

        id = self.id

        io_held_us = self.io_held_us

        memory = self.memory

        memory_bytes = self.memory_bytes

        name = self.name

        parent = self.parent

        parent_id = self.parent_id

        quiesced = self.quiesced

        stun_us = self.stun_us

        version = self.version

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "children": children,
                "children_registered": children_registered,
                "children_running": children_running,
                "created_at_ms": created_at_ms,
                "file_bytes": file_bytes,
                "id": id,
                "io_held_us": io_held_us,
                "memory": memory,
                "memory_bytes": memory_bytes,
                "name": name,
                "parent": parent,
                "parent_id": parent_id,
                "quiesced": quiesced,
                "stun_us": stun_us,
                "version": version,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        children = d.pop("children")

        children_registered = d.pop("children_registered")

        children_running = d.pop("children_running")

        created_at_ms = d.pop("created_at_ms")

        file_bytes = d.pop("file_bytes")

        id = d.pop("id")

        io_held_us = d.pop("io_held_us")

        memory = d.pop("memory")

        memory_bytes = d.pop("memory_bytes")

        name = d.pop("name")

        parent = d.pop("parent")

        parent_id = d.pop("parent_id")

        quiesced = d.pop("quiesced")

        stun_us = d.pop("stun_us")

        version = d.pop("version")

        fork_point = cls(
            children=children,
            children_registered=children_registered,
            children_running=children_running,
            created_at_ms=created_at_ms,
            file_bytes=file_bytes,
            id=id,
            io_held_us=io_held_us,
            memory=memory,
            memory_bytes=memory_bytes,
            name=name,
            parent=parent,
            parent_id=parent_id,
            quiesced=quiesced,
            stun_us=stun_us,
            version=version,
        )

        fork_point.additional_properties = d
        return fork_point

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
