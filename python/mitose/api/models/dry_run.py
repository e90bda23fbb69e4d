from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

if TYPE_CHECKING:
    from ..models.problem import Problem
    from ..models.would_make import WouldMake


T = TypeVar("T", bound="DryRun")


@_attrs_define
class DryRun:
    """What a request would lead to; nothing was made.

    Attributes:
        problems (list[Problem]): All that is in the way; empty: it can be carried out as the host is now.
        would_make (list[WouldMake]): What would be made, where nothing is in the way.
    """

    problems: list[Problem]
    would_make: list[WouldMake]
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        problems = []
        for problems_item_data in self.problems:
            problems_item = problems_item_data.to_dict()
            problems.append(problems_item)

        would_make = []
        for would_make_item_data in self.would_make:
            would_make_item = would_make_item_data.to_dict()
            would_make.append(would_make_item)

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "problems": problems,
                "would_make": would_make,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.problem import Problem
        from ..models.would_make import WouldMake

        d = dict(src_dict)
        problems = []
        _problems = d.pop("problems")
        for problems_item_data in _problems:
            problems_item = Problem.from_dict(problems_item_data)

            problems.append(problems_item)

        would_make = []
        _would_make = d.pop("would_make")
        for would_make_item_data in _would_make:
            would_make_item = WouldMake.from_dict(would_make_item_data)

            would_make.append(would_make_item)

        dry_run = cls(
            problems=problems,
            would_make=would_make,
        )

        dry_run.additional_properties = d
        return dry_run

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
