from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.extra_disk_request import ExtraDiskRequest
    from ..models.guest_info import GuestInfo
    from ..models.nic_address_request import NicAddressRequest


T = TypeVar("T", bound="PointForkRequest")


@_attrs_define
class PointForkRequest:
    """Power on children of a fork point.

    Attributes:
        addresses (list[NicAddressRequest] | Unset): Static addresses of the children's NICs, set by their agents: the
            first child gets those
            given, each further one the next.
        count (int | Unset): How many, where no names are given: children that were made ahead first, then new ones.
        extra_disks (list[ExtraDiskRequest] | Unset): Disks that each child gets at the fork, in the parent's spare
            slots in their order. A child
            that returns to the fork point has them again as they were.
        guestinfo (GuestInfo | Unset): Values of guestinfo by key.
        keep_mac (bool | Unset): Children keep the parent's hardware addresses.
        memory_limit_bytes (int | None | Unset):
        names (list[str] | Unset):
        paused (bool | Unset): Children stand still at the fork point until they are resumed.
        persistent (bool | None | Unset): Children keep their disks over a power-off; only of a quiesced parent. Where
            not given, those
            made ahead stay as they are, and new ones are not persistent.
        prefix (None | str | Unset):
        wait_ready_s (int | None | Unset):
    """

    addresses: list[NicAddressRequest] | Unset = UNSET
    count: int | Unset = UNSET
    extra_disks: list[ExtraDiskRequest] | Unset = UNSET
    guestinfo: GuestInfo | Unset = UNSET
    keep_mac: bool | Unset = UNSET
    memory_limit_bytes: int | None | Unset = UNSET
    names: list[str] | Unset = UNSET
    paused: bool | Unset = UNSET
    persistent: bool | None | Unset = UNSET
    prefix: None | str | Unset = UNSET
    wait_ready_s: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        addresses: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.addresses, Unset):
            addresses = []
            for addresses_item_data in self.addresses:
                addresses_item = addresses_item_data.to_dict()
                addresses.append(addresses_item)

        count = self.count

        extra_disks: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.extra_disks, Unset):
            extra_disks = []
            for extra_disks_item_data in self.extra_disks:
                extra_disks_item = extra_disks_item_data.to_dict()
                extra_disks.append(extra_disks_item)

        guestinfo: dict[str, Any] | Unset = UNSET
        if not isinstance(self.guestinfo, Unset):
            guestinfo = self.guestinfo.to_dict()

        keep_mac = self.keep_mac

        memory_limit_bytes: int | None | Unset
        if isinstance(self.memory_limit_bytes, Unset):
            memory_limit_bytes = UNSET
        else:
            memory_limit_bytes = self.memory_limit_bytes

        names: list[str] | Unset = UNSET
        if not isinstance(self.names, Unset):
            names = self.names

        paused = self.paused

        persistent: bool | None | Unset
        if isinstance(self.persistent, Unset):
            persistent = UNSET
        else:
            persistent = self.persistent

        prefix: None | str | Unset
        if isinstance(self.prefix, Unset):
            prefix = UNSET
        else:
            prefix = self.prefix

        wait_ready_s: int | None | Unset
        if isinstance(self.wait_ready_s, Unset):
            wait_ready_s = UNSET
        else:
            wait_ready_s = self.wait_ready_s

        field_dict: dict[str, Any] = {}

        field_dict.update({})
        if addresses is not UNSET:
            field_dict["addresses"] = addresses
        if count is not UNSET:
            field_dict["count"] = count
        if extra_disks is not UNSET:
            field_dict["extra_disks"] = extra_disks
        if guestinfo is not UNSET:
            field_dict["guestinfo"] = guestinfo
        if keep_mac is not UNSET:
            field_dict["keep_mac"] = keep_mac
        if memory_limit_bytes is not UNSET:
            field_dict["memory_limit_bytes"] = memory_limit_bytes
        if names is not UNSET:
            field_dict["names"] = names
        if paused is not UNSET:
            field_dict["paused"] = paused
        if persistent is not UNSET:
            field_dict["persistent"] = persistent
        if prefix is not UNSET:
            field_dict["prefix"] = prefix
        if wait_ready_s is not UNSET:
            field_dict["wait_ready_s"] = wait_ready_s

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.extra_disk_request import ExtraDiskRequest
        from ..models.guest_info import GuestInfo
        from ..models.nic_address_request import NicAddressRequest

        d = dict(src_dict)
        _addresses = d.pop("addresses", UNSET)
        addresses: list[NicAddressRequest] | Unset = UNSET
        if _addresses is not UNSET:
            addresses = []
            for addresses_item_data in _addresses:
                addresses_item = NicAddressRequest.from_dict(addresses_item_data)

                addresses.append(addresses_item)

        count = d.pop("count", UNSET)

        _extra_disks = d.pop("extra_disks", UNSET)
        extra_disks: list[ExtraDiskRequest] | Unset = UNSET
        if _extra_disks is not UNSET:
            extra_disks = []
            for extra_disks_item_data in _extra_disks:
                extra_disks_item = ExtraDiskRequest.from_dict(extra_disks_item_data)

                extra_disks.append(extra_disks_item)

        _guestinfo = d.pop("guestinfo", UNSET)
        guestinfo: GuestInfo | Unset
        if isinstance(_guestinfo, Unset):
            guestinfo = UNSET
        else:
            guestinfo = GuestInfo.from_dict(_guestinfo)

        keep_mac = d.pop("keep_mac", UNSET)

        def _parse_memory_limit_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        memory_limit_bytes = _parse_memory_limit_bytes(
            d.pop("memory_limit_bytes", UNSET)
        )

        names = cast(list[str], d.pop("names", UNSET))

        paused = d.pop("paused", UNSET)

        def _parse_persistent(data: object) -> bool | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(bool | None | Unset, data)

        persistent = _parse_persistent(d.pop("persistent", UNSET))

        def _parse_prefix(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        prefix = _parse_prefix(d.pop("prefix", UNSET))

        def _parse_wait_ready_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        wait_ready_s = _parse_wait_ready_s(d.pop("wait_ready_s", UNSET))

        point_fork_request = cls(
            addresses=addresses,
            count=count,
            extra_disks=extra_disks,
            guestinfo=guestinfo,
            keep_mac=keep_mac,
            memory_limit_bytes=memory_limit_bytes,
            names=names,
            paused=paused,
            persistent=persistent,
            prefix=prefix,
            wait_ready_s=wait_ready_s,
        )

        return point_fork_request
