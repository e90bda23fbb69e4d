from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="ExportRequest")


@_attrs_define
class ExportRequest:
    """Write a VM, one of its snapshots or a fork point to an archive.

    Attributes:
        path (str):
        since (None | str | Unset): Id of an earlier export: layers and pages of memory that it had are left out.
        snapshot (None | str | Unset):
        without_base (bool | Unset): Leave disk layers out that the daemon did not make: the importing host has the same
            files.
    """

    path: str
    since: None | str | Unset = UNSET
    snapshot: None | str | Unset = UNSET
    without_base: bool | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        path = self.path

        since: None | str | Unset
        if isinstance(self.since, Unset):
            since = UNSET
        else:
            since = self.since

        snapshot: None | str | Unset
        if isinstance(self.snapshot, Unset):
            snapshot = UNSET
        else:
            snapshot = self.snapshot

        without_base = self.without_base

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "path": path,
            }
        )
        if since is not UNSET:
            field_dict["since"] = since
        if snapshot is not UNSET:
            field_dict["snapshot"] = snapshot
        if without_base is not UNSET:
            field_dict["without_base"] = without_base

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        path = d.pop("path")

        def _parse_since(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        since = _parse_since(d.pop("since", UNSET))

        def _parse_snapshot(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        snapshot = _parse_snapshot(d.pop("snapshot", UNSET))

        without_base = d.pop("without_base", UNSET)

        export_request = cls(
            path=path,
            since=since,
            snapshot=snapshot,
            without_base=without_base,
        )

        return export_request
