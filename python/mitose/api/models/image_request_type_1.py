from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.image_request_type_1_action import ImageRequestType1Action
from ..types import UNSET, Unset

T = TypeVar("T", bound="ImageRequestType1")


@_attrs_define
class ImageRequestType1:
    """From a raw or qcow2 disk or an OCI/Docker archive.

    Attributes:
        action (ImageRequestType1Action):
        file (str):
        name (str):
        root_partition (int | None | Unset): Partition of a disk that has the root file system, as Linux counts them;
            found by its
            content where not given.
    """

    action: ImageRequestType1Action
    file: str
    name: str
    root_partition: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        action = self.action.value

        file = self.file

        name = self.name

        root_partition: int | None | Unset
        if isinstance(self.root_partition, Unset):
            root_partition = UNSET
        else:
            root_partition = self.root_partition

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "action": action,
                "file": file,
                "name": name,
            }
        )
        if root_partition is not UNSET:
            field_dict["root_partition"] = root_partition

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        action = ImageRequestType1Action(d.pop("action"))

        file = d.pop("file")

        name = d.pop("name")

        def _parse_root_partition(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        root_partition = _parse_root_partition(d.pop("root_partition", UNSET))

        image_request_type_1 = cls(
            action=action,
            file=file,
            name=name,
            root_partition=root_partition,
        )

        return image_request_type_1
