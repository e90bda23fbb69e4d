from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define as _attrs_define
from typing_extensions import Self

T = TypeVar("T", bound="PersistenceRequest")


@_attrs_define
class PersistenceRequest:
    """Keep a child's disks over a power-off, or not.

    Attributes:
        persistent (bool): It keeps them.
    """

    persistent: bool

    def to_dict(self) -> dict[str, Any]:
        persistent = self.persistent

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "persistent": persistent,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        persistent = d.pop("persistent")

        persistence_request = cls(
            persistent=persistent,
        )

        return persistence_request
