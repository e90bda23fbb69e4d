from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.labels_reply_attributes import LabelsReplyAttributes


T = TypeVar("T", bound="LabelsReply")


@_attrs_define
class LabelsReply:
    """Words of a user about an object.

    Attributes:
        annotation (str | Unset): Free text.
        attributes (LabelsReplyAttributes | Unset): Custom attributes.
    """

    annotation: str | Unset = UNSET
    attributes: LabelsReplyAttributes | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        annotation = self.annotation

        attributes: dict[str, Any] | Unset = UNSET
        if not isinstance(self.attributes, Unset):
            attributes = self.attributes.to_dict()

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update({})
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.labels_reply_attributes import LabelsReplyAttributes

        d = dict(src_dict)
        annotation = d.pop("annotation", UNSET)

        _attributes = d.pop("attributes", UNSET)
        attributes: LabelsReplyAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = LabelsReplyAttributes.from_dict(_attributes)

        labels_reply = cls(
            annotation=annotation,
            attributes=attributes,
        )

        labels_reply.additional_properties = d
        return labels_reply

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
