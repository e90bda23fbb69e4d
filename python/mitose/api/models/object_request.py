from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.object_request_attributes import ObjectRequestAttributes


T = TypeVar("T", bound="ObjectRequest")


@_attrs_define
class ObjectRequest:
    """Change an object. What is not given stays.

    Attributes:
        annotation (None | str | Unset):
        attributes (ObjectRequestAttributes | Unset):
        memory_bytes_max (int | None | Unset):
        name (None | str | Unset):
        parent (None | str | Unset):
        vms_max (int | None | Unset): Most VMs in it, for a resource pool; 0 for any number.
    """

    annotation: None | str | Unset = UNSET
    attributes: ObjectRequestAttributes | Unset = UNSET
    memory_bytes_max: int | None | Unset = UNSET
    name: None | str | Unset = UNSET
    parent: None | str | Unset = UNSET
    vms_max: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        annotation: None | str | Unset
        if isinstance(self.annotation, Unset):
            annotation = UNSET
        else:
            annotation = self.annotation

        attributes: dict[str, Any] | Unset = UNSET
        if not isinstance(self.attributes, Unset):
            attributes = self.attributes.to_dict()

        memory_bytes_max: int | None | Unset
        if isinstance(self.memory_bytes_max, Unset):
            memory_bytes_max = UNSET
        else:
            memory_bytes_max = self.memory_bytes_max

        name: None | str | Unset
        if isinstance(self.name, Unset):
            name = UNSET
        else:
            name = self.name

        parent: None | str | Unset
        if isinstance(self.parent, Unset):
            parent = UNSET
        else:
            parent = self.parent

        vms_max: int | None | Unset
        if isinstance(self.vms_max, Unset):
            vms_max = UNSET
        else:
            vms_max = self.vms_max

        field_dict: dict[str, Any] = {}

        field_dict.update({})
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes
        if memory_bytes_max is not UNSET:
            field_dict["memory_bytes_max"] = memory_bytes_max
        if name is not UNSET:
            field_dict["name"] = name
        if parent is not UNSET:
            field_dict["parent"] = parent
        if vms_max is not UNSET:
            field_dict["vms_max"] = vms_max

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.object_request_attributes import ObjectRequestAttributes

        d = dict(src_dict)

        def _parse_annotation(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        annotation = _parse_annotation(d.pop("annotation", UNSET))

        _attributes = d.pop("attributes", UNSET)
        attributes: ObjectRequestAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = ObjectRequestAttributes.from_dict(_attributes)

        def _parse_memory_bytes_max(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        memory_bytes_max = _parse_memory_bytes_max(d.pop("memory_bytes_max", UNSET))

        def _parse_name(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        name = _parse_name(d.pop("name", UNSET))

        def _parse_parent(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        parent = _parse_parent(d.pop("parent", UNSET))

        def _parse_vms_max(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        vms_max = _parse_vms_max(d.pop("vms_max", UNSET))

        object_request = cls(
            annotation=annotation,
            attributes=attributes,
            memory_bytes_max=memory_bytes_max,
            name=name,
            parent=parent,
            vms_max=vms_max,
        )

        return object_request
