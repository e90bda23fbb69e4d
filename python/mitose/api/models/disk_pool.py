from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.disk_pool_state import DiskPoolState
from ..types import UNSET, Unset

T = TypeVar("T", bound="DiskPool")


@_attrs_define
class DiskPool:
    """Full copies of the disks of a VM, template or image, made ahead on a datastore.

    Attributes:
        count (int): Copies wanted.
        datastore (str): Name of the datastore that the copies are on.
        hits (int): Full clones that took a copy since the daemon began.
        id (str): Its id.
        misses (int): Full clones that found none since the daemon began.
        name (str): Its name.
        ready (int): Copies that are ready.
        source (str): Name of the VM, or `image:` and the name of the image, that they are copies of.
        state (DiskPoolState): Whether a disk pool is full.
        version (int): Rises with each change.
        rate_bytes_per_s (int | None | Unset): Most bytes that are copied in a second.
        reason (None | str | Unset): Why no copies are made.
    """

    count: int
    datastore: str
    hits: int
    id: str
    misses: int
    name: str
    ready: int
    source: str
    state: DiskPoolState
    version: int
    rate_bytes_per_s: int | None | Unset = UNSET
    reason: None | str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        count = self.count

        datastore = self.datastore

        hits = self.hits

        id = self.id

        misses = self.misses

        name = self.name

        ready = self.ready

        source = self.source

        state = self.state.value

        version = self.version

        rate_bytes_per_s: int | None | Unset
        if isinstance(self.rate_bytes_per_s, Unset):
            rate_bytes_per_s = UNSET
        else:
            rate_bytes_per_s = self.rate_bytes_per_s

        reason: None | str | Unset
        if isinstance(self.reason, Unset):
            reason = UNSET
        else:
            reason = self.reason

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "count": count,
                "datastore": datastore,
                "hits": hits,
                "id": id,
                "misses": misses,
                "name": name,
                "ready": ready,
                "source": source,
                "state": state,
                "version": version,
            }
        )
        if rate_bytes_per_s is not UNSET:
            field_dict["rate_bytes_per_s"] = rate_bytes_per_s
        if reason is not UNSET:
            field_dict["reason"] = reason

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        count = d.pop("count")

        datastore = d.pop("datastore")

        hits = d.pop("hits")

        id = d.pop("id")

        misses = d.pop("misses")

        name = d.pop("name")

        ready = d.pop("ready")

        source = d.pop("source")

        state = DiskPoolState(d.pop("state"))

        version = d.pop("version")

        def _parse_rate_bytes_per_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        rate_bytes_per_s = _parse_rate_bytes_per_s(d.pop("rate_bytes_per_s", UNSET))

        def _parse_reason(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        reason = _parse_reason(d.pop("reason", UNSET))

        disk_pool = cls(
            count=count,
            datastore=datastore,
            hits=hits,
            id=id,
            misses=misses,
            name=name,
            ready=ready,
            source=source,
            state=state,
            version=version,
            rate_bytes_per_s=rate_bytes_per_s,
            reason=reason,
        )

        disk_pool.additional_properties = d
        return disk_pool

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
