from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.clone_mode import CloneMode
from ..models.serial_request_type_0 import SerialRequestType0
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.clone_edit import CloneEdit
    from ..models.extra_disk_request import ExtraDiskRequest
    from ..models.fork_request_attributes import ForkRequestAttributes
    from ..models.guest_info import GuestInfo
    from ..models.net_request import NetRequest
    from ..models.nic_address_request import NicAddressRequest
    from ..models.serial_request_type_1 import SerialRequestType1
    from ..models.serial_request_type_2 import SerialRequestType2


T = TypeVar("T", bound="ForkRequest")


@_attrs_define
class ForkRequest:
    """Clone a VM.

    Attributes:
        names (list[str]):
        addresses (list[NicAddressRequest] | Unset): Static addresses of the clones' NICs, set by their agents: the
            first clone gets those given,
            each further one the next.
        annotation (None | str | Unset):
        attributes (ForkRequestAttributes | Unset):
        datastore (None | str | Unset):
        drain_ms_max (int | None | Unset): Longest time that disk requests in flight may take, milliseconds.
        each (list[CloneEdit] | Unset): What is special about each clone, in the order of the names; none, or one for
            each.
        extra_disks (list[ExtraDiskRequest] | Unset): Disks that each instant clone gets at the fork, in the source's
            spare slots in their order.
        fail_at (None | str | Unset): Step of the fork at which to fail, for tests of the failure paths; only an admin
            may give it.
        folder (None | str | Unset):
        guestinfo (GuestInfo | Unset): Values of guestinfo by key.
        keep_mac (bool | Unset): The clones keep the source's hardware addresses and links.
        memory_limit_bytes (int | None | Unset):
        mode (CloneMode | Unset): How a clone is made.
        nets (list[NetRequest] | Unset): NICs of the clone, in the source's order, where only one is made.
        paused (bool | Unset): Instant clones stand still at the fork point until they are resumed.
        pool (None | str | Unset):
        quiesce (bool | Unset): Before full clones of a VM that runs, the file systems of its guest are synced.
        rate_bytes_per_s (int | None | Unset):
        serial (list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset): Back ends of the clone's
            serial ports, COM1 first, where only one is made. Those not given
            are logs, or pseudo-terminals where the source has such.
        snapshot (None | str | Unset):
        wait_ready_s (int | None | Unset):
    """

    names: list[str]
    addresses: list[NicAddressRequest] | Unset = UNSET
    annotation: None | str | Unset = UNSET
    attributes: ForkRequestAttributes | Unset = UNSET
    datastore: None | str | Unset = UNSET
    drain_ms_max: int | None | Unset = UNSET
    each: list[CloneEdit] | Unset = UNSET
    extra_disks: list[ExtraDiskRequest] | Unset = UNSET
    fail_at: None | str | Unset = UNSET
    folder: None | str | Unset = UNSET
    guestinfo: GuestInfo | Unset = UNSET
    keep_mac: bool | Unset = UNSET
    memory_limit_bytes: int | None | Unset = UNSET
    mode: CloneMode | Unset = UNSET
    nets: list[NetRequest] | Unset = UNSET
    paused: bool | Unset = UNSET
    pool: None | str | Unset = UNSET
    quiesce: bool | Unset = UNSET
    rate_bytes_per_s: int | None | Unset = UNSET
    serial: (
        list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset
    ) = UNSET
    snapshot: None | str | Unset = UNSET
    wait_ready_s: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        from ..models.serial_request_type_1 import SerialRequestType1

        names = self.names

        addresses: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.addresses, Unset):
            addresses = []
            for addresses_item_data in self.addresses:
                addresses_item = addresses_item_data.to_dict()
                addresses.append(addresses_item)

        annotation: None | str | Unset
        if isinstance(self.annotation, Unset):
            annotation = UNSET
        else:
            annotation = self.annotation

        attributes: dict[str, Any] | Unset = UNSET
        if not isinstance(self.attributes, Unset):
            attributes = self.attributes.to_dict()

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

        each: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.each, Unset):
            each = []
            for each_item_data in self.each:
                each_item = each_item_data.to_dict()
                each.append(each_item)

        extra_disks: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.extra_disks, Unset):
            extra_disks = []
            for extra_disks_item_data in self.extra_disks:
                extra_disks_item = extra_disks_item_data.to_dict()
                extra_disks.append(extra_disks_item)

        fail_at: None | str | Unset
        if isinstance(self.fail_at, Unset):
            fail_at = UNSET
        else:
            fail_at = self.fail_at

        folder: None | str | Unset
        if isinstance(self.folder, Unset):
            folder = UNSET
        else:
            folder = self.folder

        guestinfo: dict[str, Any] | Unset = UNSET
        if not isinstance(self.guestinfo, Unset):
            guestinfo = self.guestinfo.to_dict()

        keep_mac = self.keep_mac

        memory_limit_bytes: int | None | Unset
        if isinstance(self.memory_limit_bytes, Unset):
            memory_limit_bytes = UNSET
        else:
            memory_limit_bytes = self.memory_limit_bytes

        mode: str | Unset = UNSET
        if not isinstance(self.mode, Unset):
            mode = self.mode.value

        nets: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.nets, Unset):
            nets = []
            for nets_item_data in self.nets:
                nets_item = nets_item_data.to_dict()
                nets.append(nets_item)

        paused = self.paused

        pool: None | str | Unset
        if isinstance(self.pool, Unset):
            pool = UNSET
        else:
            pool = self.pool

        quiesce = self.quiesce

        rate_bytes_per_s: int | None | Unset
        if isinstance(self.rate_bytes_per_s, Unset):
            rate_bytes_per_s = UNSET
        else:
            rate_bytes_per_s = self.rate_bytes_per_s

        serial: list[dict[str, Any] | str] | Unset = UNSET
        if not isinstance(self.serial, Unset):
            serial = []
            for serial_item_data in self.serial:
                serial_item: dict[str, Any] | str
                if isinstance(serial_item_data, SerialRequestType0):
                    serial_item = serial_item_data.value
                elif isinstance(serial_item_data, SerialRequestType1):
                    serial_item = serial_item_data.to_dict()
                else:
                    serial_item = serial_item_data.to_dict()

                serial.append(serial_item)

        snapshot: None | str | Unset
        if isinstance(self.snapshot, Unset):
            snapshot = UNSET
        else:
            snapshot = self.snapshot

        wait_ready_s: int | None | Unset
        if isinstance(self.wait_ready_s, Unset):
            wait_ready_s = UNSET
        else:
            wait_ready_s = self.wait_ready_s

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "names": names,
            }
        )
        if addresses is not UNSET:
            field_dict["addresses"] = addresses
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes
        if datastore is not UNSET:
            field_dict["datastore"] = datastore
        if drain_ms_max is not UNSET:
            field_dict["drain_ms_max"] = drain_ms_max
        if each is not UNSET:
            field_dict["each"] = each
        if extra_disks is not UNSET:
            field_dict["extra_disks"] = extra_disks
        if fail_at is not UNSET:
            field_dict["fail_at"] = fail_at
        if folder is not UNSET:
            field_dict["folder"] = folder
        if guestinfo is not UNSET:
            field_dict["guestinfo"] = guestinfo
        if keep_mac is not UNSET:
            field_dict["keep_mac"] = keep_mac
        if memory_limit_bytes is not UNSET:
            field_dict["memory_limit_bytes"] = memory_limit_bytes
        if mode is not UNSET:
            field_dict["mode"] = mode
        if nets is not UNSET:
            field_dict["nets"] = nets
        if paused is not UNSET:
            field_dict["paused"] = paused
        if pool is not UNSET:
            field_dict["pool"] = pool
        if quiesce is not UNSET:
            field_dict["quiesce"] = quiesce
        if rate_bytes_per_s is not UNSET:
            field_dict["rate_bytes_per_s"] = rate_bytes_per_s
        if serial is not UNSET:
            field_dict["serial"] = serial
        if snapshot is not UNSET:
            field_dict["snapshot"] = snapshot
        if wait_ready_s is not UNSET:
            field_dict["wait_ready_s"] = wait_ready_s

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.clone_edit import CloneEdit
        from ..models.extra_disk_request import ExtraDiskRequest
        from ..models.fork_request_attributes import ForkRequestAttributes
        from ..models.guest_info import GuestInfo
        from ..models.net_request import NetRequest
        from ..models.nic_address_request import NicAddressRequest
        from ..models.serial_request_type_1 import SerialRequestType1
        from ..models.serial_request_type_2 import SerialRequestType2

        d = dict(src_dict)
        names = cast(list[str], d.pop("names"))

        _addresses = d.pop("addresses", UNSET)
        addresses: list[NicAddressRequest] | Unset = UNSET
        if _addresses is not UNSET:
            addresses = []
            for addresses_item_data in _addresses:
                addresses_item = NicAddressRequest.from_dict(addresses_item_data)

                addresses.append(addresses_item)

        def _parse_annotation(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        annotation = _parse_annotation(d.pop("annotation", UNSET))

        _attributes = d.pop("attributes", UNSET)
        attributes: ForkRequestAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = ForkRequestAttributes.from_dict(_attributes)

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

        _each = d.pop("each", UNSET)
        each: list[CloneEdit] | Unset = UNSET
        if _each is not UNSET:
            each = []
            for each_item_data in _each:
                each_item = CloneEdit.from_dict(each_item_data)

                each.append(each_item)

        _extra_disks = d.pop("extra_disks", UNSET)
        extra_disks: list[ExtraDiskRequest] | Unset = UNSET
        if _extra_disks is not UNSET:
            extra_disks = []
            for extra_disks_item_data in _extra_disks:
                extra_disks_item = ExtraDiskRequest.from_dict(extra_disks_item_data)

                extra_disks.append(extra_disks_item)

        def _parse_fail_at(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        fail_at = _parse_fail_at(d.pop("fail_at", UNSET))

        def _parse_folder(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        folder = _parse_folder(d.pop("folder", UNSET))

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

        _mode = d.pop("mode", UNSET)
        mode: CloneMode | Unset
        if isinstance(_mode, Unset):
            mode = UNSET
        else:
            mode = CloneMode(_mode)

        _nets = d.pop("nets", UNSET)
        nets: list[NetRequest] | Unset = UNSET
        if _nets is not UNSET:
            nets = []
            for nets_item_data in _nets:
                nets_item = NetRequest.from_dict(nets_item_data)

                nets.append(nets_item)

        paused = d.pop("paused", UNSET)

        def _parse_pool(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        pool = _parse_pool(d.pop("pool", UNSET))

        quiesce = d.pop("quiesce", UNSET)

        def _parse_rate_bytes_per_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        rate_bytes_per_s = _parse_rate_bytes_per_s(d.pop("rate_bytes_per_s", UNSET))

        _serial = d.pop("serial", UNSET)
        serial: (
            list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset
        ) = UNSET
        if _serial is not UNSET:
            serial = []
            for serial_item_data in _serial:

                def _parse_serial_item(
                    data: object,
                ) -> SerialRequestType0 | SerialRequestType1 | SerialRequestType2:
                    try:
                        if not isinstance(data, str):
                            raise TypeError()
                        componentsschemas_serial_request_type_0 = SerialRequestType0(
                            data
                        )

                        return componentsschemas_serial_request_type_0
                    except (TypeError, ValueError, AttributeError, KeyError):
                        pass
                    try:
                        if not isinstance(data, dict):
                            raise TypeError()
                        componentsschemas_serial_request_type_1 = (
                            SerialRequestType1.from_dict(data)
                        )

                        return componentsschemas_serial_request_type_1
                    except (TypeError, ValueError, AttributeError, KeyError):
                        pass
                    if not isinstance(data, dict):
                        raise TypeError()
                    componentsschemas_serial_request_type_2 = (
                        SerialRequestType2.from_dict(data)
                    )

                    return componentsschemas_serial_request_type_2

                serial_item = _parse_serial_item(serial_item_data)

                serial.append(serial_item)

        def _parse_snapshot(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        snapshot = _parse_snapshot(d.pop("snapshot", UNSET))

        def _parse_wait_ready_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        wait_ready_s = _parse_wait_ready_s(d.pop("wait_ready_s", UNSET))

        fork_request = cls(
            names=names,
            addresses=addresses,
            annotation=annotation,
            attributes=attributes,
            datastore=datastore,
            drain_ms_max=drain_ms_max,
            each=each,
            extra_disks=extra_disks,
            fail_at=fail_at,
            folder=folder,
            guestinfo=guestinfo,
            keep_mac=keep_mac,
            memory_limit_bytes=memory_limit_bytes,
            mode=mode,
            nets=nets,
            paused=paused,
            pool=pool,
            quiesce=quiesce,
            rate_bytes_per_s=rate_bytes_per_s,
            serial=serial,
            snapshot=snapshot,
            wait_ready_s=wait_ready_s,
        )

        return fork_request
