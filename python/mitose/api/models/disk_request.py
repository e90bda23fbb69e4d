from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.image_format import ImageFormat
from ..types import UNSET, Unset

T = TypeVar("T", bound="DiskRequest")


@_attrs_define
class DiskRequest:
    """One disk of a new VM: the file stays as it is, writes go to a delta of the VM.

    Attributes:
        path (str):
        format_ (ImageFormat | None | Unset):
        read_only (bool | Unset): The guest cannot write.
    """

    path: str
    format_: ImageFormat | None | Unset = UNSET
    read_only: bool | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        path = self.path

        format_: None | str | Unset
        if isinstance(self.format_, Unset):
            format_ = UNSET
        elif isinstance(self.format_, ImageFormat):
            format_ = self.format_.value
        else:
            format_ = self.format_

        read_only = self.read_only

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "path": path,
            }
        )
        if format_ is not UNSET:
            field_dict["format"] = format_
        if read_only is not UNSET:
            field_dict["read_only"] = read_only

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        path = d.pop("path")

        def _parse_format_(data: object) -> ImageFormat | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, str):
                    raise TypeError()
                format_type_1 = ImageFormat(data)

                return format_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            return cast(ImageFormat | None | Unset, data)

        format_ = _parse_format_(d.pop("format", UNSET))

        read_only = d.pop("read_only", UNSET)

        disk_request = cls(
            path=path,
            format_=format_,
            read_only=read_only,
        )

        return disk_request
