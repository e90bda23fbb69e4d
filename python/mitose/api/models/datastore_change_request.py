from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="DatastoreChangeRequest")


@_attrs_define
class DatastoreChangeRequest:
    """Change a datastore: what is given.

    Attributes:
        maintenance (bool | None | Unset): It takes no new disks.
        name (None | str | Unset):
        reserve_bytes (int | None | Unset):
        version (int | None | Unset):
        warn_bytes (int | None | Unset):
    """

    maintenance: bool | None | Unset = UNSET
    name: None | str | Unset = UNSET
    reserve_bytes: int | None | Unset = UNSET
    version: int | None | Unset = UNSET
    warn_bytes: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        maintenance: bool | None | Unset
        if isinstance(self.maintenance, Unset):
            maintenance = UNSET
        else:
            maintenance = self.maintenance

        name: None | str | Unset
        if isinstance(self.name, Unset):
            name = UNSET
        else:
            name = self.name

        reserve_bytes: int | None | Unset
        if isinstance(self.reserve_bytes, Unset):
            reserve_bytes = UNSET
        else:
            reserve_bytes = self.reserve_bytes

        version: int | None | Unset
        if isinstance(self.version, Unset):
            version = UNSET
        else:
            version = self.version

        warn_bytes: int | None | Unset
        if isinstance(self.warn_bytes, Unset):
            warn_bytes = UNSET
        else:
            warn_bytes = self.warn_bytes

        field_dict: dict[str, Any] = {}

        field_dict.update({})
        if maintenance is not UNSET:
            field_dict["maintenance"] = maintenance
        if name is not UNSET:
            field_dict["name"] = name
        if reserve_bytes is not UNSET:
            field_dict["reserve_bytes"] = reserve_bytes
        if version is not UNSET:
            field_dict["version"] = version
        if warn_bytes is not UNSET:
            field_dict["warn_bytes"] = warn_bytes

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)

        def _parse_maintenance(data: object) -> bool | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(bool | None | Unset, data)

        maintenance = _parse_maintenance(d.pop("maintenance", UNSET))

        def _parse_name(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        name = _parse_name(d.pop("name", UNSET))

        def _parse_reserve_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        reserve_bytes = _parse_reserve_bytes(d.pop("reserve_bytes", UNSET))

        def _parse_version(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        version = _parse_version(d.pop("version", UNSET))

        def _parse_warn_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        warn_bytes = _parse_warn_bytes(d.pop("warn_bytes", UNSET))

        datastore_change_request = cls(
            maintenance=maintenance,
            name=name,
            reserve_bytes=reserve_bytes,
            version=version,
            warn_bytes=warn_bytes,
        )

        return datastore_change_request
