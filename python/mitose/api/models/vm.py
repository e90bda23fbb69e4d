from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.persistence import Persistence
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.vm_attributes import VmAttributes


T = TypeVar("T", bound="Vm")


@_attrs_define
class Vm:
    """A VM as `ls` shows it.

    Attributes:
        cpus (int): Number of vCPUs.
        engine (str): `kvm` or `soft`.
        generation (int): Forks between it and a VM that booted.
        memory_bytes (int): Guest RAM, bytes.
        name (str): Its name.
        ready (bool): The guest's agent said that it is ready.
        state (str): `creating`, `running`, `paused`, `frozen`, `paused: no space`, `poweredOff` or `out of memory`.
        annotation (str | Unset): Free text of a user.
        attributes (VmAttributes | Unset): Attributes that a user gave it.
        folder (str | Unset): Id of the folder that it lies in.
        fork_point (None | str | Unset): Id of the fork point that it is a child of.
        id (str | Unset): Its id, never used again.
        persistence (None | Persistence | Unset):
        source (None | str | Unset): Name of the VM it was cloned from, as it was then.
        template (bool | Unset): It is not to be started, only cloned.
        version (int | Unset): Rises with each change of its configuration; the `ETag` of the VM.
    """

    cpus: int
    engine: str
    generation: int
    memory_bytes: int
    name: str
    ready: bool
    state: str
    annotation: str | Unset = UNSET
    attributes: VmAttributes | Unset = UNSET
    folder: str | Unset = UNSET
    fork_point: None | str | Unset = UNSET
    id: str | Unset = UNSET
    persistence: None | Persistence | Unset = UNSET
    source: None | str | Unset = UNSET
    template: bool | Unset = UNSET
    version: int | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        cpus = self.cpus

        engine = self.engine

        generation = self.generation

        memory_bytes = self.memory_bytes

        name = self.name

        ready = self.ready

        state = self.state

        annotation = self.annotation

        attributes: dict[str, Any] | Unset = UNSET
        if not isinstance(self.attributes, Unset):
            attributes = self.attributes.to_dict()

        folder = self.folder

        fork_point: None | str | Unset
        if isinstance(self.fork_point, Unset):
            fork_point = UNSET
        else:
            fork_point = self.fork_point

        id = self.id

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

        template = self.template

        version = self.version

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "cpus": cpus,
                "engine": engine,
                "generation": generation,
                "memory_bytes": memory_bytes,
                "name": name,
                "ready": ready,
                "state": state,
            }
        )
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes
        if folder is not UNSET:
            field_dict["folder"] = folder
        if fork_point is not UNSET:
            field_dict["fork_point"] = fork_point
        if id is not UNSET:
            field_dict["id"] = id
        if persistence is not UNSET:
            field_dict["persistence"] = persistence
        if source is not UNSET:
            field_dict["source"] = source
        if template is not UNSET:
            field_dict["template"] = template
        if version is not UNSET:
            field_dict["version"] = version

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.vm_attributes import VmAttributes

        d = dict(src_dict)
        cpus = d.pop("cpus")

        engine = d.pop("engine")

        generation = d.pop("generation")

        memory_bytes = d.pop("memory_bytes")

        name = d.pop("name")

        ready = d.pop("ready")

        state = d.pop("state")

        annotation = d.pop("annotation", UNSET)

        _attributes = d.pop("attributes", UNSET)
        attributes: VmAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = VmAttributes.from_dict(_attributes)

        folder = d.pop("folder", UNSET)

        def _parse_fork_point(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        fork_point = _parse_fork_point(d.pop("fork_point", UNSET))

        id = d.pop("id", UNSET)

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

        template = d.pop("template", UNSET)

        version = d.pop("version", UNSET)

        vm = cls(
            cpus=cpus,
            engine=engine,
            generation=generation,
            memory_bytes=memory_bytes,
            name=name,
            ready=ready,
            state=state,
            annotation=annotation,
            attributes=attributes,
            folder=folder,
            fork_point=fork_point,
            id=id,
            persistence=persistence,
            source=source,
            template=template,
            version=version,
        )

        vm.additional_properties = d
        return vm

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
