from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.persistence import Persistence
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.memory_use import MemoryUse
    from ..models.stun_record import StunRecord


T = TypeVar("T", bound="LineageVm")


@_attrs_define
class LineageVm:
    """A VM among its family.

    Attributes:
        disk_bytes (int): Allocated bytes of its own tops.
        disk_depths (list[int]): Layers of each disk, its own top included.
        folder (str): Its folder's path; `/` for the first one.
        generation (int): Forks between it and a VM that booted.
        id (str): Its id.
        memory_depth (int): Layers of its RAM: 1 for a VM that was never forked, 2 on a private view, 0 without a
            process.
        name (str): Its name; for a VM that was removed the one that it had.
        fork_point (None | str | Unset): Id of the fork point that it is a child of.
        forks (list[StunRecord] | Unset): Latest forks of it, with their stuns.
        memory (MemoryUse | None | Unset):
        persistence (None | Persistence | Unset):
        source (None | str | Unset): Id of the VM that it was cloned from.
        source_name (None | str | Unset): Name that it had then.
        state (None | str | Unset): Its state; none where it was removed.
    """

    disk_bytes: int
    disk_depths: list[int]
    folder: str
    generation: int
    id: str
    memory_depth: int
    name: str
    fork_point: None | str | Unset = UNSET
    forks: list[StunRecord] | Unset = UNSET
    memory: MemoryUse | None | Unset = UNSET
    persistence: None | Persistence | Unset = UNSET
    source: None | str | Unset = UNSET
    source_name: None | str | Unset = UNSET
    state: None | str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        from ..models.memory_use import MemoryUse

        disk_bytes = self.disk_bytes

        disk_depths = self.disk_depths

        folder = self.folder

        generation = self.generation

        id = self.id

        memory_depth = self.memory_depth

        name = self.name

        fork_point: None | str | Unset
        if isinstance(self.fork_point, Unset):
            fork_point = UNSET
        else:
            fork_point = self.fork_point

        forks: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.forks, Unset):
            forks = []
            for forks_item_data in self.forks:
                forks_item = forks_item_data.to_dict()
                forks.append(forks_item)

        memory: dict[str, Any] | None | Unset
        if isinstance(self.memory, Unset):
            memory = UNSET
        elif isinstance(self.memory, MemoryUse):
            memory = self.memory.to_dict()
        else:
            memory = self.memory

        persistence: None | str | Unset
        if isinstance(self.persistence, Unset):
            persistence = UNSET
        elif isinstance(self.persistence, Persistence):
            persistence = self.persistence.value
        else:
            persistence = self.persistence

        source: None | str | Unset
        if isinstance(self.source, Unset):
            source = UNSET
        else:
            source = self.source

        source_name: None | str | Unset
        if isinstance(self.source_name, Unset):
            source_name = UNSET
        else:
            source_name = self.source_name

        state: None | str | Unset
        if isinstance(self.state, Unset):
            state = UNSET
        else:
            state = self.state

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "disk_bytes": disk_bytes,
                "disk_depths": disk_depths,
                "folder": folder,
                "generation": generation,
                "id": id,
                "memory_depth": memory_depth,
                "name": name,
            }
        )
        if fork_point is not UNSET:
            field_dict["fork_point"] = fork_point
        if forks is not UNSET:
            field_dict["forks"] = forks
        if memory is not UNSET:
            field_dict["memory"] = memory
        if persistence is not UNSET:
            field_dict["persistence"] = persistence
        if source is not UNSET:
            field_dict["source"] = source
        if source_name is not UNSET:
            field_dict["source_name"] = source_name
        if state is not UNSET:
            field_dict["state"] = state

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.memory_use import MemoryUse
        from ..models.stun_record import StunRecord

        d = dict(src_dict)
        disk_bytes = d.pop("disk_bytes")

        disk_depths = cast(list[int], d.pop("disk_depths"))

        folder = d.pop("folder")

        generation = d.pop("generation")

        id = d.pop("id")

        memory_depth = d.pop("memory_depth")

        name = d.pop("name")

        def _parse_fork_point(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        fork_point = _parse_fork_point(d.pop("fork_point", UNSET))

        _forks = d.pop("forks", UNSET)
        forks: list[StunRecord] | Unset = UNSET
        if _forks is not UNSET:
            forks = []
            for forks_item_data in _forks:
                forks_item = StunRecord.from_dict(forks_item_data)

                forks.append(forks_item)

        def _parse_memory(data: object) -> MemoryUse | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, dict):
                    raise TypeError()
                memory_type_1 = MemoryUse.from_dict(data)

                return memory_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            return cast(MemoryUse | None | Unset, data)

        memory = _parse_memory(d.pop("memory", UNSET))

        def _parse_persistence(data: object) -> None | Persistence | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, str):
                    raise TypeError()
                persistence_type_1 = Persistence(data)

                return persistence_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            return cast(None | Persistence | Unset, data)

        persistence = _parse_persistence(d.pop("persistence", UNSET))

        def _parse_source(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        source = _parse_source(d.pop("source", UNSET))

        def _parse_source_name(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        source_name = _parse_source_name(d.pop("source_name", UNSET))

        def _parse_state(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        state = _parse_state(d.pop("state", UNSET))

        lineage_vm = cls(
            disk_bytes=disk_bytes,
            disk_depths=disk_depths,
            folder=folder,
            generation=generation,
            id=id,
            memory_depth=memory_depth,
            name=name,
            fork_point=fork_point,
            forks=forks,
            memory=memory,
            persistence=persistence,
            source=source,
            source_name=source_name,
            state=state,
        )

        lineage_vm.additional_properties = d
        return lineage_vm

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
