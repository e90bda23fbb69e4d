from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.import_as import ImportAs
from ..types import UNSET, Unset

T = TypeVar("T", bound="ImportRequest")


@_attrs_define
class ImportRequest:
    """Make a VM or a fork point of an archive.

    Attributes:
        path (str):
        as_ (ImportAs | None | Unset):
        datastore (None | str | Unset):
        earlier (list[str] | Unset): Earlier archives, in any order, that have what this one leaves out.
        name (None | str | Unset):
        new_identity (bool | Unset): Make it another machine than the exported one: new hardware addresses, UUID,
            machine id and,
            where its guest has an agent, host name and keys. Otherwise it is the same machine. Children
            of a fork point are machines of their own in any case.
        replace (bool | Unset): Where an earlier import of the same machine is here and nobody changed it since, take
            its
            place: it keeps its id, name, folder, pool, words, networks and serial back ends. The earlier one
            stays until all of the new one is there.
    """

    path: str
    as_: ImportAs | None | Unset = UNSET
    datastore: None | str | Unset = UNSET
    earlier: list[str] | Unset = UNSET
    name: None | str | Unset = UNSET
    new_identity: bool | Unset = UNSET
    replace: bool | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        path = self.path

        as_: None | str | Unset
        if isinstance(self.as_, Unset):
            as_ = UNSET
        elif isinstance(self.as_, ImportAs):
            as_ = self.as_.value
        else:
            as_ = self.as_

        datastore: None | str | Unset
        if isinstance(self.datastore, Unset):
            datastore = UNSET
        else:
            datastore = self.datastore

        earlier: list[str] | Unset = UNSET
        if not isinstance(self.earlier, Unset):
            earlier = self.earlier

        name: None | str | Unset
        if isinstance(self.name, Unset):
            name = UNSET
        else:
            name = self.name

        new_identity = self.new_identity

        replace = self.replace

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "path": path,
            }
        )
        if as_ is not UNSET:
            field_dict["as"] = as_
        if datastore is not UNSET:
            field_dict["datastore"] = datastore
        if earlier is not UNSET:
            field_dict["earlier"] = earlier
        if name is not UNSET:
            field_dict["name"] = name
        if new_identity is not UNSET:
            field_dict["new_identity"] = new_identity
        if replace is not UNSET:
            field_dict["replace"] = replace

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        path = d.pop("path")

        def _parse_as_(data: object) -> ImportAs | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, str):
                    raise TypeError()
                as_type_1 = ImportAs(data)

                return as_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            return cast(ImportAs | None | Unset, data)

        as_ = _parse_as_(d.pop("as", UNSET))

        def _parse_datastore(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        datastore = _parse_datastore(d.pop("datastore", UNSET))

        earlier = cast(list[str], d.pop("earlier", UNSET))

        def _parse_name(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        name = _parse_name(d.pop("name", UNSET))

        new_identity = d.pop("new_identity", UNSET)

        replace = d.pop("replace", UNSET)

        import_request = cls(
            path=path,
            as_=as_,
            datastore=datastore,
            earlier=earlier,
            name=name,
            new_identity=new_identity,
            replace=replace,
        )

        return import_request
