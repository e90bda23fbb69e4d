from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define as _attrs_define
from typing_extensions import Self

T = TypeVar("T", bound="SerialRequestType2")


@_attrs_define
class SerialRequestType2:
    """A Unix socket that takes one connection at a time, beside the log.

    Attributes:
        unix (str):
    """

    unix: str

    def to_dict(self) -> dict[str, Any]:
        unix = self.unix

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "unix": unix,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        unix = d.pop("unix")

        serial_request_type_2 = cls(
            unix=unix,
        )

        return serial_request_type_2
