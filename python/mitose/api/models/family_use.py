from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

T = TypeVar("T", bound="FamilyUse")


@_attrs_define
class FamilyUse:
    """What a family takes together.

    Attributes:
        disk_bytes (int): Allocated bytes of all layers that the daemon made for its members, each counted once.
        private_kib (int): Pages that its members wrote since their fork points, KiB.
        pss_kib (int): Its members' shares of all pages that they map, KiB: what the family takes of the host.
        running (int): Of these, those with a process.
        shared_disk_bytes (int): Of these, bytes in layers that several members share.
        vms (int): Members that exist.
    """

    disk_bytes: int
    private_kib: int
    pss_kib: int
    running: int
    shared_disk_bytes: int
    vms: int
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        disk_bytes = self.disk_bytes

        private_kib = self.private_kib

        pss_kib = self.pss_kib

        running = self.running

        shared_disk_bytes = self.shared_disk_bytes

        vms = self.vms

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "disk_bytes": disk_bytes,
                "private_kib": private_kib,
                "pss_kib": pss_kib,
                "running": running,
                "shared_disk_bytes": shared_disk_bytes,
                "vms": vms,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        disk_bytes = d.pop("disk_bytes")

        private_kib = d.pop("private_kib")

        pss_kib = d.pop("pss_kib")

        running = d.pop("running")

        shared_disk_bytes = d.pop("shared_disk_bytes")

        vms = d.pop("vms")

        family_use = cls(
            disk_bytes=disk_bytes,
            private_kib=private_kib,
            pss_kib=pss_kib,
            running=running,
            shared_disk_bytes=shared_disk_bytes,
            vms=vms,
        )

        family_use.additional_properties = d
        return family_use

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
