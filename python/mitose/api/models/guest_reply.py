from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

T = TypeVar("T", bound="GuestReply")


@_attrs_define
class GuestReply:
    """What a guest's agent said about itself; not to be trusted.

    Attributes:
        errors (list[str]): What the agent could not apply.
        hostname (str): Host name in force.
        machine_id (str): Content of `/etc/machine-id`.
        macs (list[str]): Hardware addresses in force.
    """

    errors: list[str]
    hostname: str
    machine_id: str
    macs: list[str]
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        errors = self.errors

        hostname = self.hostname

        machine_id = self.machine_id

        macs = self.macs

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "errors": errors,
                "hostname": hostname,
                "machine_id": machine_id,
                "macs": macs,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        errors = cast(list[str], d.pop("errors"))

        hostname = d.pop("hostname")

        machine_id = d.pop("machine_id")

        macs = cast(list[str], d.pop("macs"))

        guest_reply = cls(
            errors=errors,
            hostname=hostname,
            machine_id=machine_id,
            macs=macs,
        )

        guest_reply.additional_properties = d
        return guest_reply

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
