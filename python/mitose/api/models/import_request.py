from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="ImportRequest")


@_attrs_define
class ImportRequest:
    """Make a VM of an archive.

    Attributes:
        path (str):
        datastore (None | str | Unset):
        name (None | str | Unset):
        new_identity (bool | Unset): Make it another machine than the exported one: new hardware addresses, UUID,
            machine id and,
            where its guest has an agent, host name and keys. Otherwise it is the same machine.
    """

    path: str
    datastore: None | str | Unset = UNSET
    name: None | str | Unset = UNSET
    new_identity: bool | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        path = self.path

        datastore: None | str | Unset
        if isinstance(self.datastore, Unset):
            datastore = UNSET
        else:
            datastore = self.datastore

        name: None | str | Unset
        if isinstance(self.name, Unset):
            name = UNSET
        else:
            name = self.name

        new_identity = self.new_identity

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "path": path,
            }
        )
        if datastore is not UNSET:
            field_dict["datastore"] = datastore
        if name is not UNSET:
            field_dict["name"] = name
        if new_identity is not UNSET:
            field_dict["new_identity"] = new_identity

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        path = d.pop("path")

        def _parse_datastore(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        datastore = _parse_datastore(d.pop("datastore", UNSET))

        def _parse_name(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        name = _parse_name(d.pop("name", UNSET))

        new_identity = d.pop("new_identity", UNSET)

        import_request = cls(
            path=path,
            datastore=datastore,
            name=name,
            new_identity=new_identity,
        )

        return import_request
