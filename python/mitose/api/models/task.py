from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.error_kind import ErrorKind
from ..models.task_state import TaskState
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.task_item import TaskItem


T = TypeVar("T", bound="Task")


@_attrs_define
class Task:
    """An operation that changes something.

    Attributes:
        id (int): Rising number.
        kind (str): What it does, such as `image.build`.
        message (str): What it does at the moment.
        state (TaskState): State of a task or of one of its items.
        subject (str): Name of what it works on.
        cancellable (bool | Unset): It can be cancelled.
        ended_at_ms (int | None | Unset): When it ended, milliseconds since 1970.
        error (None | str | Unset): Why it failed: one line.
        error_kind (ErrorKind | None | Unset):
        field (None | str | Unset): Member of the request that it failed by, where it is one.
        idempotency_key (None | str | Unset): Key that the client gave: the same call with the same key is carried out
            once.
        items (list[TaskItem] | Unset): What it makes, one by one, where there are several.
        object_ (None | str | Unset): Id of what it works on.
        percent (int | None | Unset): 0 to 100, where known.
        remedy (None | str | Unset): What to do about its failure, where that is known.
        result (Any | Unset): What it gave, by its kind.
        started_at_ms (int | Unset): When it began, milliseconds since 1970.
        user (str | Unset): Who asked for it.
    """

    id: int
    kind: str
    message: str
    state: TaskState
    subject: str
    cancellable: bool | Unset = UNSET
    ended_at_ms: int | None | Unset = UNSET
    error: None | str | Unset = UNSET
    error_kind: ErrorKind | None | Unset = UNSET
    field: None | str | Unset = UNSET
    idempotency_key: None | str | Unset = UNSET
    items: list[TaskItem] | Unset = UNSET
    object_: None | str | Unset = UNSET
    percent: int | None | Unset = UNSET
    remedy: None | str | Unset = UNSET
    result: Any | Unset = UNSET
    started_at_ms: int | Unset = UNSET
    user: str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        id = self.id

        kind = self.kind

        message = self.message

        state = self.state.value

        subject = self.subject

        cancellable = self.cancellable

        ended_at_ms: int | None | Unset
        if isinstance(self.ended_at_ms, Unset):
            ended_at_ms = UNSET
        else:
            ended_at_ms = self.ended_at_ms

        error: None | str | Unset
        if isinstance(self.error, Unset):
            error = UNSET
        else:
            error = self.error

        error_kind: None | str | Unset
        if isinstance(self.error_kind, Unset):
            error_kind = UNSET
        elif isinstance(self.error_kind, ErrorKind):
            error_kind = self.error_kind.value
        else:
            error_kind = self.error_kind

        field: None | str | Unset
        if isinstance(self.field, Unset):
            field = UNSET
        else:
            field = self.field

        idempotency_key: None | str | Unset
        if isinstance(self.idempotency_key, Unset):
            idempotency_key = UNSET
        else:
            idempotency_key = self.idempotency_key

        items: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.items, Unset):
            items = []
            for items_item_data in self.items:
                items_item = items_item_data.to_dict()
                items.append(items_item)

        object_: None | str | Unset
        if isinstance(self.object_, Unset):
            object_ = UNSET
        else:
            object_ = self.object_

        percent: int | None | Unset
        if isinstance(self.percent, Unset):
            percent = UNSET
        else:
            percent = self.percent

        remedy: None | str | Unset
        if isinstance(self.remedy, Unset):
            remedy = UNSET
        else:
            remedy = self.remedy

        result = self.result

        started_at_ms = self.started_at_ms

        user = self.user

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "id": id,
                "kind": kind,
                "message": message,
                "state": state,
                "subject": subject,
            }
        )
        if cancellable is not UNSET:
            field_dict["cancellable"] = cancellable
        if ended_at_ms is not UNSET:
            field_dict["ended_at_ms"] = ended_at_ms
        if error is not UNSET:
            field_dict["error"] = error
        if error_kind is not UNSET:
            field_dict["error_kind"] = error_kind
        if field is not UNSET:
            field_dict["field"] = field
        if idempotency_key is not UNSET:
            field_dict["idempotency_key"] = idempotency_key
        if items is not UNSET:
            field_dict["items"] = items
        if object_ is not UNSET:
            field_dict["object"] = object_
        if percent is not UNSET:
            field_dict["percent"] = percent
        if remedy is not UNSET:
            field_dict["remedy"] = remedy
        if result is not UNSET:
            field_dict["result"] = result
        if started_at_ms is not UNSET:
            field_dict["started_at_ms"] = started_at_ms
        if user is not UNSET:
            field_dict["user"] = user

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.task_item import TaskItem

        d = dict(src_dict)
        id = d.pop("id")

        kind = d.pop("kind")

        message = d.pop("message")

        state = TaskState(d.pop("state"))

        subject = d.pop("subject")

        cancellable = d.pop("cancellable", UNSET)

        def _parse_ended_at_ms(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        ended_at_ms = _parse_ended_at_ms(d.pop("ended_at_ms", UNSET))

        def _parse_error(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        error = _parse_error(d.pop("error", UNSET))

        def _parse_error_kind(data: object) -> ErrorKind | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, str):
                    raise TypeError()
                error_kind_type_1 = ErrorKind(data)

                return error_kind_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            return cast(ErrorKind | None | Unset, data)

        error_kind = _parse_error_kind(d.pop("error_kind", UNSET))

        def _parse_field(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        field = _parse_field(d.pop("field", UNSET))

        def _parse_idempotency_key(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        idempotency_key = _parse_idempotency_key(d.pop("idempotency_key", UNSET))

        _items = d.pop("items", UNSET)
        items: list[TaskItem] | Unset = UNSET
        if _items is not UNSET:
            items = []
            for items_item_data in _items:
                items_item = TaskItem.from_dict(items_item_data)

                items.append(items_item)

        def _parse_object_(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        object_ = _parse_object_(d.pop("object", UNSET))

        def _parse_percent(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        percent = _parse_percent(d.pop("percent", UNSET))

        def _parse_remedy(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        remedy = _parse_remedy(d.pop("remedy", UNSET))

        result = d.pop("result", UNSET)

        started_at_ms = d.pop("started_at_ms", UNSET)

        user = d.pop("user", UNSET)

        task = cls(
            id=id,
            kind=kind,
            message=message,
            state=state,
            subject=subject,
            cancellable=cancellable,
            ended_at_ms=ended_at_ms,
            error=error,
            error_kind=error_kind,
            field=field,
            idempotency_key=idempotency_key,
            items=items,
            object_=object_,
            percent=percent,
            remedy=remedy,
            result=result,
            started_at_ms=started_at_ms,
            user=user,
        )

        task.additional_properties = d
        return task

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
