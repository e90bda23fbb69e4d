from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.role import Role

T = TypeVar("T", bound="NewToken")


@_attrs_define
class NewToken:
    """A new token.

    Attributes:
        created_at_ms (int): When it was made, milliseconds since 1970.
        id (str): Its id.
        name (str): Its name.
        role (Role): What a client may do.
        secret (str): What its bearer sends as `Authorization: Bearer …`; shown only this once.
    """

    created_at_ms: int
    id: str
    name: str
    role: Role
    secret: str
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        created_at_ms = self.created_at_ms

        id = self.id

        name = self.name

        role = self.role.value

        secret = self.secret

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "created_at_ms": created_at_ms,
                "id": id,
                "name": name,
                "role": role,
                "secret": secret,
            }
        )

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        created_at_ms = d.pop("created_at_ms")

        id = d.pop("id")

        name = d.pop("name")

        role = Role(d.pop("role"))

        secret = d.pop("secret")

        new_token = cls(
            created_at_ms=created_at_ms,
            id=id,
            name=name,
            role=role,
            secret=secret,
        )

        new_token.additional_properties = d
        return new_token

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
