from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.datastore_state import DatastoreState
from ..types import UNSET, Unset

T = TypeVar("T", bound="Datastore")


@_attrs_define
class Datastore:
    """A place for disks.

    Attributes:
        capacity_bytes (int): Size of its file system, bytes; 0 where it is inaccessible.
        free_bytes (int): What can be written to it, bytes.
        id (str): Its id.
        maintenance (bool): It takes no new disks.
        name (str): Its name.
        path (str): Its directory.
        promised_bytes (int): Of these, promised to operations under way.
        reserve_bytes (int): Free space below which it takes no new disks, bytes.
        state (DatastoreState): Whether a datastore can be used.
        version (int): Rises with each change.
        vms (int): VMs whose home is on it.
        warn_bytes (int): Free space below which an event warns, bytes.
        reason (None | str | Unset): Why it is inaccessible.
    """

    capacity_bytes: int
    free_bytes: int
    id: str
    maintenance: bool
    name: str
    path: str
    promised_bytes: int
    reserve_bytes: int
    state: DatastoreState
    version: int
    vms: int
    warn_bytes: int
    reason: None | str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        capacity_bytes = self.capacity_bytes

        free_bytes = self.free_bytes

        id = self.id

        maintenance = self.maintenance

        name = self.name

        path = self.path

        promised_bytes = self.promised_bytes

        reserve_bytes = self.reserve_bytes

        state = self.state.value

        version = self.version

        vms = self.vms

        warn_bytes = self.warn_bytes

        reason: None | str | Unset
        if isinstance(self.reason, Unset):
            reason = UNSET
        else:
            reason = self.reason

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "capacity_bytes": capacity_bytes,
                "free_bytes": free_bytes,
                "id": id,
                "maintenance": maintenance,
                "name": name,
                "path": path,
                "promised_bytes": promised_bytes,
                "reserve_bytes": reserve_bytes,
                "state": state,
                "version": version,
                "vms": vms,
                "warn_bytes": warn_bytes,
            }
        )
        if reason is not UNSET:
            field_dict["reason"] = reason

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        capacity_bytes = d.pop("capacity_bytes")

        free_bytes = d.pop("free_bytes")

        id = d.pop("id")

        maintenance = d.pop("maintenance")

        name = d.pop("name")

        path = d.pop("path")

        promised_bytes = d.pop("promised_bytes")

        reserve_bytes = d.pop("reserve_bytes")

        state = DatastoreState(d.pop("state"))

        version = d.pop("version")

        vms = d.pop("vms")

        warn_bytes = d.pop("warn_bytes")

        def _parse_reason(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        reason = _parse_reason(d.pop("reason", UNSET))

        datastore = cls(
            capacity_bytes=capacity_bytes,
            free_bytes=free_bytes,
            id=id,
            maintenance=maintenance,
            name=name,
            path=path,
            promised_bytes=promised_bytes,
            reserve_bytes=reserve_bytes,
            state=state,
            version=version,
            vms=vms,
            warn_bytes=warn_bytes,
            reason=reason,
        )

        datastore.additional_properties = d
        return datastore

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
