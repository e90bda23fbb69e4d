from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="DiskDetail")


@_attrs_define
class DiskDetail:
    """One disk of a VM.

    Attributes:
        layers (list[str]): Files of the stack, the writable top first; none of an empty slot.
        read_only (bool): The guest cannot write.
        serial (str): Serial number that the guest reads.
        size_bytes (int | Unset): Size that the guest sees, bytes; 0 of an empty slot.
    """

    layers: list[str]
    read_only: bool
    serial: str
    size_bytes: int | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        layers = self.layers

        read_only = self.read_only

        serial = self.serial

        size_bytes = self.size_bytes

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "layers": layers,
                "read_only": read_only,
                "serial": serial,
            }
        )
        if size_bytes is not UNSET:
            field_dict["size_bytes"] = size_bytes

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        layers = cast(list[str], d.pop("layers"))

        read_only = d.pop("read_only")

        serial = d.pop("serial")

        size_bytes = d.pop("size_bytes", UNSET)

        disk_detail = cls(
            layers=layers,
            read_only=read_only,
            serial=serial,
            size_bytes=size_bytes,
        )

        disk_detail.additional_properties = d
        return disk_detail

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
