from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.labels_reply_attributes import LabelsReplyAttributes


T = TypeVar("T", bound="Folder")


@_attrs_define
class Folder:
    """A folder of VMs.

    Attributes:
        id (str): Its id, never used again.
        kind (str): `datacenter`, `folder`, `host`, `resource_pool`, `datastore`, `network`, `vm` ...
        name (str): Its name.
        version (int): Rises with each change: the value of `ETag`.
        folders (int): Folders in it.
        path (str): Names that lead to it, joined by `/`; `/` for the first folder.
        vms (int): VMs in it.
        annotation (str | Unset): Free text.
        attributes (LabelsReplyAttributes | Unset): Custom attributes.
        parent (None | str | Unset): Id of the object that it lies in.
    """

    id: str
    kind: str
    name: str
    version: int
    folders: int
    path: str
    vms: int
    annotation: str | Unset = UNSET
    attributes: LabelsReplyAttributes | Unset = UNSET
    parent: None | str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        id = self.id

        kind = self.kind

        name = self.name

        version = self.version

        folders = self.folders

        path = self.path

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

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "id": id,
                "kind": kind,
                "name": name,
                "version": version,
                "folders": folders,
                "path": path,
                "vms": vms,
            }
        )
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes
        if parent is not UNSET:
            field_dict["parent"] = parent

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.labels_reply_attributes import LabelsReplyAttributes

        d = dict(src_dict)
        id = d.pop("id")

        kind = d.pop("kind")

        name = d.pop("name")

        version = d.pop("version")

        folders = d.pop("folders")

        path = d.pop("path")

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

        folder = cls(
            id=id,
            kind=kind,
            name=name,
            version=version,
            folders=folders,
            path=path,
            vms=vms,
            annotation=annotation,
            attributes=attributes,
            parent=parent,
        )

        folder.additional_properties = d
        return folder

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
