from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="DatastoreAddRequest")


@_attrs_define
class DatastoreAddRequest:
    """Add a datastore.

    Attributes:
        name (str):
        path (str):
        reserve_bytes (int | None | Unset):
        warn_bytes (int | None | Unset):
    """

    name: str
    path: str
    reserve_bytes: int | None | Unset = UNSET
    warn_bytes: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        name = self.name

        path = self.path

        reserve_bytes: int | None | Unset
        if isinstance(self.reserve_bytes, Unset):
            reserve_bytes = UNSET
        else:
            reserve_bytes = self.reserve_bytes

        warn_bytes: int | None | Unset
        if isinstance(self.warn_bytes, Unset):
            warn_bytes = UNSET
        else:
            warn_bytes = self.warn_bytes

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "name": name,
                "path": path,
            }
        )
        if reserve_bytes is not UNSET:
            field_dict["reserve_bytes"] = reserve_bytes
        if warn_bytes is not UNSET:
            field_dict["warn_bytes"] = warn_bytes

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        name = d.pop("name")

        path = d.pop("path")

        def _parse_reserve_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        reserve_bytes = _parse_reserve_bytes(d.pop("reserve_bytes", UNSET))

        def _parse_warn_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        warn_bytes = _parse_warn_bytes(d.pop("warn_bytes", UNSET))

        datastore_add_request = cls(
            name=name,
            path=path,
            reserve_bytes=reserve_bytes,
            warn_bytes=warn_bytes,
        )

        return datastore_add_request
