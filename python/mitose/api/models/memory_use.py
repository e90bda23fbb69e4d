from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="MemoryUse")


@_attrs_define
class MemoryUse:
    """Host memory of a VM.

    Attributes:
        configured_bytes (int): Guest RAM, bytes.
        private_kib (int): Pages written since its own fork point and the VM process's own, KiB.
        pss_kib (int): Proportional share of all pages that it maps, KiB.
        shared_kib (int): Resident pages of the layers that it sees, KiB.
        limit_kib (int | None | Unset): Most that it may take beside its layers, KiB; none on a host that cannot limit
            it.
    """

    configured_bytes: int
    private_kib: int
    pss_kib: int
    shared_kib: int
    limit_kib: int | None | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        configured_bytes = self.configured_bytes

        private_kib = self.private_kib

        pss_kib = self.pss_kib

        shared_kib = self.shared_kib

        limit_kib: int | None | Unset
        if isinstance(self.limit_kib, Unset):
            limit_kib = UNSET
        else:
            limit_kib = self.limit_kib

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "configured_bytes": configured_bytes,
                "private_kib": private_kib,
                "pss_kib": pss_kib,
                "shared_kib": shared_kib,
            }
        )
        if limit_kib is not UNSET:
            field_dict["limit_kib"] = limit_kib

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        configured_bytes = d.pop("configured_bytes")

        private_kib = d.pop("private_kib")

        pss_kib = d.pop("pss_kib")

        shared_kib = d.pop("shared_kib")

        def _parse_limit_kib(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        limit_kib = _parse_limit_kib(d.pop("limit_kib", UNSET))

        memory_use = cls(
            configured_bytes=configured_bytes,
            private_kib=private_kib,
            pss_kib=pss_kib,
            shared_kib=shared_kib,
            limit_kib=limit_kib,
        )

        memory_use.additional_properties = d
        return memory_use

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
