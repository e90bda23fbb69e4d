from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="DiskPoolChangeRequest")


@_attrs_define
class DiskPoolChangeRequest:
    """Change a disk pool: what is given.

    Attributes:
        count (int | None | Unset): Copies wanted.
        rate_bytes_per_s (int | None | Unset):
        version (int | None | Unset):
    """

    count: int | None | Unset = UNSET
    rate_bytes_per_s: int | None | Unset = UNSET
    version: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        count: int | None | Unset
        if isinstance(self.count, Unset):
            count = UNSET
        else:
            count = self.count

        rate_bytes_per_s: int | None | Unset
        if isinstance(self.rate_bytes_per_s, Unset):
            rate_bytes_per_s = UNSET
        else:
            rate_bytes_per_s = self.rate_bytes_per_s

        version: int | None | Unset
        if isinstance(self.version, Unset):
            version = UNSET
        else:
            version = self.version

        field_dict: dict[str, Any] = {}

        field_dict.update({})
        if count is not UNSET:
            field_dict["count"] = count
        if rate_bytes_per_s is not UNSET:
            field_dict["rate_bytes_per_s"] = rate_bytes_per_s
        if version is not UNSET:
            field_dict["version"] = version

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)

        def _parse_count(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        count = _parse_count(d.pop("count", UNSET))

        def _parse_rate_bytes_per_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        rate_bytes_per_s = _parse_rate_bytes_per_s(d.pop("rate_bytes_per_s", UNSET))

        def _parse_version(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        version = _parse_version(d.pop("version", UNSET))

        disk_pool_change_request = cls(
            count=count,
            rate_bytes_per_s=rate_bytes_per_s,
            version=version,
        )

        return disk_pool_change_request
