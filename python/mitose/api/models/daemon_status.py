from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

T = TypeVar("T", bound="DaemonStatus")


@_attrs_define
class DaemonStatus:
    """State of the daemon.

    Attributes:
        home (str): Its data directory.
        pid (int): Its process.
        shells_ready (int): Pre-started shells that wait.
        shells_wanted (int): Pre-started shells that it keeps.
        version (str): Its version.
        vms (int): VMs in the inventory.
        vms_running (int): Of these, VMs with a process.
    """

    home: str
    pid: int
    shells_ready: int
    shells_wanted: int
    version: str
    vms: int
    vms_running: int
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        home = self.home

        pid = self.pid

        shells_ready = self.shells_ready

        shells_wanted = self.shells_wanted

        version = self.version

        vms = self.vms

        vms_running = self.vms_running

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "home": home,
                "pid": pid,
                "shells_ready": shells_ready,
                "shells_wanted": shells_wanted,
                "version": version,
                "vms": vms,
                "vms_running": vms_running,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        home = d.pop("home")

        pid = d.pop("pid")

        shells_ready = d.pop("shells_ready")

        shells_wanted = d.pop("shells_wanted")

        version = d.pop("version")

        vms = d.pop("vms")

        vms_running = d.pop("vms_running")

        daemon_status = cls(
            home=home,
            pid=pid,
            shells_ready=shells_ready,
            shells_wanted=shells_wanted,
            version=version,
            vms=vms,
            vms_running=vms_running,
        )

        daemon_status.additional_properties = d
        return daemon_status

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
