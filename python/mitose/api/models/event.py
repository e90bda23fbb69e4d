from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="Event")


@_attrs_define
class Event:
    """Something that happened.

    Attributes:
        at_ms (int): Milliseconds since 1970.
        id (int): Rising number.
        kind (str): What happened, such as `vm.started`.
        message (str): One line for a person.
        subject (str): Name of what it is about.
        data (Any | Unset): What a program wants to know, by the kind of event.
        object_ (None | str | Unset): Id of what it is about.
        task (int | None | Unset): Task that it belongs to.
        user (None | str | Unset): Who asked for that task.
    """

    at_ms: int
    id: int
    kind: str
    message: str
    subject: str
    data: Any | Unset = UNSET
    object_: None | str | Unset = UNSET
    task: int | None | Unset = UNSET
    user: None | str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        at_ms = self.at_ms

        id = self.id

        kind = self.kind

        message = self.message

        subject = self.subject

        data = self.data

        object_: None | str | Unset
        if isinstance(self.object_, Unset):
            object_ = UNSET
        else:
            object_ = self.object_

        task: int | None | Unset
        if isinstance(self.task, Unset):
            task = UNSET
        else:
            task = self.task

        user: None | str | Unset
        if isinstance(self.user, Unset):
            user = UNSET
        else:
            user = self.user

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "at_ms": at_ms,
                "id": id,
                "kind": kind,
                "message": message,
                "subject": subject,
            }
        )
        if data is not UNSET:
            field_dict["data"] = data
        if object_ is not UNSET:
            field_dict["object"] = object_
        if task is not UNSET:
            field_dict["task"] = task
        if user is not UNSET:
            field_dict["user"] = user

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        at_ms = d.pop("at_ms")

        id = d.pop("id")

        kind = d.pop("kind")

        message = d.pop("message")

        subject = d.pop("subject")

        data = d.pop("data", UNSET)

        def _parse_object_(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        object_ = _parse_object_(d.pop("object", UNSET))

        def _parse_task(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        task = _parse_task(d.pop("task", UNSET))

        def _parse_user(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        user = _parse_user(d.pop("user", UNSET))

        event = cls(
            at_ms=at_ms,
            id=id,
            kind=kind,
            message=message,
            subject=subject,
            data=data,
            object_=object_,
            task=task,
            user=user,
        )

        event.additional_properties = d
        return event

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
