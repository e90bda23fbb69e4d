from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.labels_reply_attributes import LabelsReplyAttributes


T = TypeVar("T", bound="ResourcePool")


@_attrs_define
class ResourcePool:
    """A resource pool: VMs that share limits.

    Attributes:
        id (str): Its id, never used again.
        kind (str): `datacenter`, `folder`, `host`, `resource_pool`, `datastore`, `network`, `vm` ...
        name (str): Its name.
        version (int): Rises with each change: the value of `ETag`.
        memory_bytes (int): Guest memory of the VMs in it, bytes.
        vms (int): VMs in it.
        annotation (str | Unset): Free text.
        attributes (LabelsReplyAttributes | Unset): Custom attributes.
        parent (None | str | Unset): Id of the object that it lies in.
        memory_bytes_max (int | None | Unset): Most of it, bytes.
        vms_max (int | None | Unset): Most of them.
    """

    id: str
    kind: str
    name: str
    version: int
    memory_bytes: int
    vms: int
    annotation: str | Unset = UNSET
    attributes: LabelsReplyAttributes | Unset = UNSET
    parent: None | str | Unset = UNSET
    memory_bytes_max: int | None | Unset = UNSET
    vms_max: int | None | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        id = self.id

        kind = self.kind

        name = self.name

        version = self.version

        memory_bytes = self.memory_bytes

        vms = self.vms

        annotation = self.annotation

        attributes: dict[str, Any] | Unset = UNSET
        if not isinstance(self.attributes, Unset):
            attributes = self.attributes.to_dict()

        parent: None | str | Unset
        if isinstance(self.parent, Unset):
            parent = UNSET
        else:
            parent = self.parent

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
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "id": id,
                "kind": kind,
                "name": name,
                "version": version,
                "memory_bytes": memory_bytes,
                "vms": vms,
            }
        )
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes
        if parent is not UNSET:
            field_dict["parent"] = parent
        if memory_bytes_max is not UNSET:
            field_dict["memory_bytes_max"] = memory_bytes_max
        if vms_max is not UNSET:
            field_dict["vms_max"] = vms_max

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.labels_reply_attributes import LabelsReplyAttributes

        d = dict(src_dict)
        id = d.pop("id")

        kind = d.pop("kind")

        name = d.pop("name")

        version = d.pop("version")

        memory_bytes = d.pop("memory_bytes")

        vms = d.pop("vms")

        annotation = d.pop("annotation", UNSET)

        _attributes = d.pop("attributes", UNSET)
        attributes: LabelsReplyAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = LabelsReplyAttributes.from_dict(_attributes)

        def _parse_parent(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        parent = _parse_parent(d.pop("parent", UNSET))

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

        resource_pool = cls(
            id=id,
            kind=kind,
            name=name,
            version=version,
            memory_bytes=memory_bytes,
            vms=vms,
            annotation=annotation,
            attributes=attributes,
            parent=parent,
            memory_bytes_max=memory_bytes_max,
            vms_max=vms_max,
        )

        resource_pool.additional_properties = d
        return resource_pool

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
