from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.image_request_type_1_action import ImageRequestType1Action

T = TypeVar("T", bound="ImageRequestType1")


@_attrs_define
class ImageRequestType1:
    """From a raw or qcow2 disk or an OCI/Docker archive.

    Attributes:
        action (ImageRequestType1Action):
        file (str):
        name (str):
    """

    action: ImageRequestType1Action
    file: str
    name: str

    def to_dict(self) -> dict[str, Any]:
        action = self.action.value

        file = self.file

        name = self.name

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "action": action,
                "file": file,
                "name": name,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        action = ImageRequestType1Action(d.pop("action"))

        file = d.pop("file")

        name = d.pop("name")

        image_request_type_1 = cls(
            action=action,
            file=file,
            name=name,
        )

        return image_request_type_1
