from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="StunRecord")


@_attrs_define
class StunRecord:
    """One fork of a VM, as its source saw it.

    Attributes:
        at_ms (int): Milliseconds since 1970.
        clones (int): Clones made.
        io_held_us (int): Disk queues held, microseconds.
        stun_us (int): First vCPU stopped to last vCPU running again, microseconds.
        steps_us (list[list[int | str]] | Unset):
    """

    at_ms: int
    clones: int
    io_held_us: int
    stun_us: int
    steps_us: list[list[int | str]] | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        at_ms = self.at_ms

        clones = self.clones

        io_held_us = self.io_held_us

        stun_us = self.stun_us

        steps_us: list[list[int | str]] | Unset = UNSET
        if not isinstance(self.steps_us, Unset):
            steps_us = []
            for steps_us_item_data in self.steps_us:
                steps_us_item = []
                for steps_us_item_item_data in steps_us_item_data:
                    steps_us_item_item: int | str
                    steps_us_item_item = steps_us_item_item_data
                    steps_us_item.append(steps_us_item_item)

                steps_us.append(steps_us_item)

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "at_ms": at_ms,
                "clones": clones,
                "io_held_us": io_held_us,
                "stun_us": stun_us,
            }
        )
        if steps_us is not UNSET:
            field_dict["steps_us"] = steps_us

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        at_ms = d.pop("at_ms")

        clones = d.pop("clones")

        io_held_us = d.pop("io_held_us")

        stun_us = d.pop("stun_us")

        _steps_us = d.pop("steps_us", UNSET)
        steps_us: list[list[int | str]] | Unset = UNSET
        if _steps_us is not UNSET:
            steps_us = []
            for steps_us_item_data in _steps_us:
                steps_us_item = []
                _steps_us_item = steps_us_item_data
                for steps_us_item_item_data in _steps_us_item:

                    def _parse_steps_us_item_item(data: object) -> int | str:
                        return cast(int | str, data)

                    steps_us_item_item = _parse_steps_us_item_item(
                        steps_us_item_item_data
                    )

                    steps_us_item.append(steps_us_item_item)

                steps_us.append(steps_us_item)

        stun_record = cls(
            at_ms=at_ms,
            clones=clones,
            io_held_us=io_held_us,
            stun_us=stun_us,
            steps_us=steps_us,
        )

        stun_record.additional_properties = d
        return stun_record

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
