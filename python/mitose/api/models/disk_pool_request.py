from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="DiskPoolRequest")


@_attrs_define
class DiskPoolRequest:
    """Make a disk pool.

    Attributes:
        count (int): Copies wanted.
        datastore (str):
        source (str): VM or template, by id or name, or an image: its name, also behind `image:`.
        name (None | str | Unset):
        rate_bytes_per_s (int | None | Unset):
    """

    count: int
    datastore: str
    source: str
    name: None | str | Unset = UNSET
    rate_bytes_per_s: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        count = self.count

        datastore = self.datastore

        source = self.source

        name: None | str | Unset
        if isinstance(self.name, Unset):
            name = UNSET
        else:
            name = self.name

        rate_bytes_per_s: int | None | Unset
        if isinstance(self.rate_bytes_per_s, Unset):
            rate_bytes_per_s = UNSET
        else:
            rate_bytes_per_s = self.rate_bytes_per_s

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "count": count,
                "datastore": datastore,
                "source": source,
            }
        )
        if name is not UNSET:
            field_dict["name"] = name
        if rate_bytes_per_s is not UNSET:
            field_dict["rate_bytes_per_s"] = rate_bytes_per_s

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        count = d.pop("count")

        datastore = d.pop("datastore")

        source = d.pop("source")

        def _parse_name(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        name = _parse_name(d.pop("name", UNSET))

        def _parse_rate_bytes_per_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        rate_bytes_per_s = _parse_rate_bytes_per_s(d.pop("rate_bytes_per_s", UNSET))

        disk_pool_request = cls(
            count=count,
            datastore=datastore,
            source=source,
            name=name,
            rate_bytes_per_s=rate_bytes_per_s,
        )

        return disk_pool_request
