from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="PrepareRequest")


@_attrs_define
class PrepareRequest:
    """Turn a powered-on VM into a parent: keep a fork point of it and make children ahead.

    Attributes:
        children (int | Unset): Children to make ahead: their homes and delta disks, registered but not started.
        datastore (None | str | Unset):
        drain_ms_max (int | None | Unset): Longest time that disk requests in flight may take, milliseconds.
        durable (bool | Unset): Write the memory to a datastore: the fork point survives a restart of the host.
        exec_ (list[str] | Unset):
        exec_timeout_s (int | None | Unset):
        name (None | str | Unset):
        persistent (bool | Unset): Children keep their disks over a power-off; only of a quiesced parent.
        prefix (None | str | Unset):
        quiesce (bool | Unset): Bring the guest to rest first: its file systems are synced, and it stays paused.
    """

    children: int | Unset = UNSET
    datastore: None | str | Unset = UNSET
    drain_ms_max: int | None | Unset = UNSET
    durable: bool | Unset = UNSET
    exec_: list[str] | Unset = UNSET
    exec_timeout_s: int | None | Unset = UNSET
    name: None | str | Unset = UNSET
    persistent: bool | Unset = UNSET
    prefix: None | str | Unset = UNSET
    quiesce: bool | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        children = self.children

        datastore: None | str | Unset
        if isinstance(self.datastore, Unset):
            datastore = UNSET
        else:
            datastore = self.datastore

        drain_ms_max: int | None | Unset
        if isinstance(self.drain_ms_max, Unset):
            drain_ms_max = UNSET
        else:
            drain_ms_max = self.drain_ms_max

        durable = self.durable

        exec_: list[str] | Unset = UNSET
        if not isinstance(self.exec_, Unset):
            exec_ = self.exec_

        exec_timeout_s: int | None | Unset
        if isinstance(self.exec_timeout_s, Unset):
            exec_timeout_s = UNSET
        else:
            exec_timeout_s = self.exec_timeout_s

        name: None | str | Unset
        if isinstance(self.name, Unset):
            name = UNSET
        else:
            name = self.name

        persistent = self.persistent

        prefix: None | str | Unset
        if isinstance(self.prefix, Unset):
            prefix = UNSET
        else:
            prefix = self.prefix

        quiesce = self.quiesce

        field_dict: dict[str, Any] = {}

        field_dict.update({})
        if children is not UNSET:
            field_dict["children"] = children
        if datastore is not UNSET:
            field_dict["datastore"] = datastore
        if drain_ms_max is not UNSET:
            field_dict["drain_ms_max"] = drain_ms_max
        if durable is not UNSET:
            field_dict["durable"] = durable
        if exec_ is not UNSET:
            field_dict["exec"] = exec_
        if exec_timeout_s is not UNSET:
            field_dict["exec_timeout_s"] = exec_timeout_s
        if name is not UNSET:
            field_dict["name"] = name
        if persistent is not UNSET:
            field_dict["persistent"] = persistent
        if prefix is not UNSET:
            field_dict["prefix"] = prefix
        if quiesce is not UNSET:
            field_dict["quiesce"] = quiesce

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        children = d.pop("children", UNSET)

        def _parse_datastore(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        datastore = _parse_datastore(d.pop("datastore", UNSET))

        def _parse_drain_ms_max(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        drain_ms_max = _parse_drain_ms_max(d.pop("drain_ms_max", UNSET))

        durable = d.pop("durable", UNSET)

        exec_ = cast(list[str], d.pop("exec", UNSET))

        def _parse_exec_timeout_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        exec_timeout_s = _parse_exec_timeout_s(d.pop("exec_timeout_s", UNSET))

        def _parse_name(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        name = _parse_name(d.pop("name", UNSET))

        persistent = d.pop("persistent", UNSET)

        def _parse_prefix(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        prefix = _parse_prefix(d.pop("prefix", UNSET))

        quiesce = d.pop("quiesce", UNSET)

        prepare_request = cls(
            children=children,
            datastore=datastore,
            drain_ms_max=drain_ms_max,
            durable=durable,
            exec_=exec_,
            exec_timeout_s=exec_timeout_s,
            name=name,
            persistent=persistent,
            prefix=prefix,
            quiesce=quiesce,
        )

        return prepare_request
