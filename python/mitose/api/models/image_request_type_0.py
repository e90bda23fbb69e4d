from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.build_kind import BuildKind
from ..models.image_request_type_0_action import ImageRequestType0Action
from ..models.init_kind import InitKind
from ..types import UNSET, Unset

T = TypeVar("T", bound="ImageRequestType0")


@_attrs_define
class ImageRequestType0:
    """From Debian's packages.

    Attributes:
        action (ImageRequestType0Action):
        kind (BuildKind): Kind of image to build.
        name (str):
        disk_bytes (int | None | Unset):
        include (list[str] | Unset):
        init (InitKind | Unset): First process of a built image.
        suite (None | str | Unset): Debian release; the default one where not given.
    """

    action: ImageRequestType0Action
    kind: BuildKind
    name: str
    disk_bytes: int | None | Unset = UNSET
    include: list[str] | Unset = UNSET
    init: InitKind | Unset = UNSET
    suite: None | str | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        action = self.action.value

        kind = self.kind.value

        name = self.name

        disk_bytes: int | None | Unset
        if isinstance(self.disk_bytes, Unset):
            disk_bytes = UNSET
        else:
            disk_bytes = self.disk_bytes

        include: list[str] | Unset = UNSET
        if not isinstance(self.include, Unset):
            include = self.include

        init: str | Unset = UNSET
        if not isinstance(self.init, Unset):
            init = self.init.value

        suite: None | str | Unset
        if isinstance(self.suite, Unset):
            suite = UNSET
        else:
            suite = self.suite

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "action": action,
                "kind": kind,
                "name": name,
            }
        )
        if disk_bytes is not UNSET:
            field_dict["disk_bytes"] = disk_bytes
        if include is not UNSET:
            field_dict["include"] = include
        if init is not UNSET:
            field_dict["init"] = init
        if suite is not UNSET:
            field_dict["suite"] = suite

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        action = ImageRequestType0Action(d.pop("action"))

        kind = BuildKind(d.pop("kind"))

        name = d.pop("name")

        def _parse_disk_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        disk_bytes = _parse_disk_bytes(d.pop("disk_bytes", UNSET))

        include = cast(list[str], d.pop("include", UNSET))

        _init = d.pop("init", UNSET)
        init: InitKind | Unset
        if isinstance(_init, Unset):
            init = UNSET
        else:
            init = InitKind(_init)

        def _parse_suite(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        suite = _parse_suite(d.pop("suite", UNSET))

        image_request_type_0 = cls(
            action=action,
            kind=kind,
            name=name,
            disk_bytes=disk_bytes,
            include=include,
            init=init,
            suite=suite,
        )

        return image_request_type_0
