from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.run_request_engine import RunRequestEngine
from ..models.serial_request_type_0 import SerialRequestType0
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.disk_request import DiskRequest
    from ..models.guest_info import GuestInfo
    from ..models.net_request import NetRequest
    from ..models.nic_address_request import NicAddressRequest
    from ..models.run_request_attributes import RunRequestAttributes
    from ..models.serial_request_type_1 import SerialRequestType1
    from ..models.serial_request_type_2 import SerialRequestType2


T = TypeVar("T", bound="RunRequest")


@_attrs_define
class RunRequest:
    """Make a VM and start it.

    Attributes:
        name (str):
        addresses (list[NicAddressRequest] | Unset): Static addresses of its NICs, set by its agent.
        annotation (None | str | Unset):
        attributes (RunRequestAttributes | Unset):
        bios_uuid (None | str | Unset):
        cmdline (None | str | Unset):
        cpus (int | Unset):
        datastore (None | str | Unset):
        disks (list[DiskRequest] | Unset): Disks behind those of the image.
        engine (RunRequestEngine | Unset):  Default: RunRequestEngine.AUTO.
        entry (int | None | Unset):
        folder (None | str | Unset):
        guestinfo (GuestInfo | Unset): Values of guestinfo by key.
        image (None | str | Unset):
        initrd (None | str | Unset):
        kernel (None | str | Unset):
        memory_bytes (int | Unset):
        memory_limit_bytes (int | None | Unset):
        more_serial (list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset): Back ends of COM2,
            COM3 and COM4, as many as are given.
        nets (list[NetRequest] | Unset): NICs.
        pool (None | str | Unset):
        powered_off (bool | Unset): Make it and do not start it.
        serial (SerialRequestType0 | SerialRequestType1 | SerialRequestType2 | Unset): Back end of a serial port: a log
            in the VM's home folder, nothing, a pseudo-terminal beside the log, or a file or socket of the host.
        spare_disks (int | Unset): Empty disk slots behind its disks: clones made of it while it runs can be given disks
            there.
        uuid (None | str | Unset):
        wait_ready_s (int | None | Unset):
    """

    name: str
    addresses: list[NicAddressRequest] | Unset = UNSET
    annotation: None | str | Unset = UNSET
    attributes: RunRequestAttributes | Unset = UNSET
    bios_uuid: None | str | Unset = UNSET
    cmdline: None | str | Unset = UNSET
    cpus: int | Unset = UNSET
    datastore: None | str | Unset = UNSET
    disks: list[DiskRequest] | Unset = UNSET
    engine: RunRequestEngine | Unset = RunRequestEngine.AUTO
    entry: int | None | Unset = UNSET
    folder: None | str | Unset = UNSET
    guestinfo: GuestInfo | Unset = UNSET
    image: None | str | Unset = UNSET
    initrd: None | str | Unset = UNSET
    kernel: None | str | Unset = UNSET
    memory_bytes: int | Unset = UNSET
    memory_limit_bytes: int | None | Unset = UNSET
    more_serial: (
        list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset
    ) = UNSET
    nets: list[NetRequest] | Unset = UNSET
    pool: None | str | Unset = UNSET
    powered_off: bool | Unset = UNSET
    serial: SerialRequestType0 | SerialRequestType1 | SerialRequestType2 | Unset = UNSET
    spare_disks: int | Unset = UNSET
    uuid: None | str | Unset = UNSET
    wait_ready_s: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        from ..models.serial_request_type_1 import SerialRequestType1

        name = self.name

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

        bios_uuid: None | str | Unset
        if isinstance(self.bios_uuid, Unset):
            bios_uuid = UNSET
        else:
            bios_uuid = self.bios_uuid

        cmdline: None | str | Unset
        if isinstance(self.cmdline, Unset):
            cmdline = UNSET
        else:
            cmdline = self.cmdline

        cpus = self.cpus

        datastore: None | str | Unset
        if isinstance(self.datastore, Unset):
            datastore = UNSET
        else:
            datastore = self.datastore

        disks: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.disks, Unset):
            disks = []
            for disks_item_data in self.disks:
                disks_item = disks_item_data.to_dict()
                disks.append(disks_item)

        engine: str | Unset = UNSET
        if not isinstance(self.engine, Unset):
            engine = self.engine.value

        entry: int | None | Unset
        if isinstance(self.entry, Unset):
            entry = UNSET
        else:
            entry = self.entry

        folder: None | str | Unset
        if isinstance(self.folder, Unset):
            folder = UNSET
        else:
            folder = self.folder

        guestinfo: dict[str, Any] | Unset = UNSET
        if not isinstance(self.guestinfo, Unset):
            guestinfo = self.guestinfo.to_dict()

        image: None | str | Unset
        if isinstance(self.image, Unset):
            image = UNSET
        else:
            image = self.image

        initrd: None | str | Unset
        if isinstance(self.initrd, Unset):
            initrd = UNSET
        else:
            initrd = self.initrd

        kernel: None | str | Unset
        if isinstance(self.kernel, Unset):
            kernel = UNSET
        else:
            kernel = self.kernel

        memory_bytes = self.memory_bytes

        memory_limit_bytes: int | None | Unset
        if isinstance(self.memory_limit_bytes, Unset):
            memory_limit_bytes = UNSET
        else:
            memory_limit_bytes = self.memory_limit_bytes

        more_serial: list[dict[str, Any] | str] | Unset = UNSET
        if not isinstance(self.more_serial, Unset):
            more_serial = []
            for more_serial_item_data in self.more_serial:
                more_serial_item: dict[str, Any] | str
                if isinstance(more_serial_item_data, SerialRequestType0):
                    more_serial_item = more_serial_item_data.value
                elif isinstance(more_serial_item_data, SerialRequestType1):
                    more_serial_item = more_serial_item_data.to_dict()
                else:
                    more_serial_item = more_serial_item_data.to_dict()

                more_serial.append(more_serial_item)

        nets: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.nets, Unset):
            nets = []
            for nets_item_data in self.nets:
                nets_item = nets_item_data.to_dict()
                nets.append(nets_item)

        pool: None | str | Unset
        if isinstance(self.pool, Unset):
            pool = UNSET
        else:
            pool = self.pool

        powered_off = self.powered_off

        serial: dict[str, Any] | str | Unset
        if isinstance(self.serial, Unset):
            serial = UNSET
        elif isinstance(self.serial, SerialRequestType0):
            serial = self.serial.value
        elif isinstance(self.serial, SerialRequestType1):
            serial = self.serial.to_dict()
        else:
            serial = self.serial.to_dict()

        spare_disks = self.spare_disks

        uuid: None | str | Unset
        if isinstance(self.uuid, Unset):
            uuid = UNSET
        else:
            uuid = self.uuid

        wait_ready_s: int | None | Unset
        if isinstance(self.wait_ready_s, Unset):
            wait_ready_s = UNSET
        else:
            wait_ready_s = self.wait_ready_s

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "name": name,
            }
        )
        if addresses is not UNSET:
            field_dict["addresses"] = addresses
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes
        if bios_uuid is not UNSET:
            field_dict["bios_uuid"] = bios_uuid
        if cmdline is not UNSET:
            field_dict["cmdline"] = cmdline
        if cpus is not UNSET:
            field_dict["cpus"] = cpus
        if datastore is not UNSET:
            field_dict["datastore"] = datastore
        if disks is not UNSET:
            field_dict["disks"] = disks
        if engine is not UNSET:
            field_dict["engine"] = engine
        if entry is not UNSET:
            field_dict["entry"] = entry
        if folder is not UNSET:
            field_dict["folder"] = folder
        if guestinfo is not UNSET:
            field_dict["guestinfo"] = guestinfo
        if image is not UNSET:
            field_dict["image"] = image
        if initrd is not UNSET:
            field_dict["initrd"] = initrd
        if kernel is not UNSET:
            field_dict["kernel"] = kernel
        if memory_bytes is not UNSET:
            field_dict["memory_bytes"] = memory_bytes
        if memory_limit_bytes is not UNSET:
            field_dict["memory_limit_bytes"] = memory_limit_bytes
        if more_serial is not UNSET:
            field_dict["more_serial"] = more_serial
        if nets is not UNSET:
            field_dict["nets"] = nets
        if pool is not UNSET:
            field_dict["pool"] = pool
        if powered_off is not UNSET:
            field_dict["powered_off"] = powered_off
        if serial is not UNSET:
            field_dict["serial"] = serial
        if spare_disks is not UNSET:
            field_dict["spare_disks"] = spare_disks
        if uuid is not UNSET:
            field_dict["uuid"] = uuid
        if wait_ready_s is not UNSET:
            field_dict["wait_ready_s"] = wait_ready_s

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.disk_request import DiskRequest
        from ..models.guest_info import GuestInfo
        from ..models.net_request import NetRequest
        from ..models.nic_address_request import NicAddressRequest
        from ..models.run_request_attributes import RunRequestAttributes
        from ..models.serial_request_type_1 import SerialRequestType1
        from ..models.serial_request_type_2 import SerialRequestType2

        d = dict(src_dict)
        name = d.pop("name")

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
        attributes: RunRequestAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = RunRequestAttributes.from_dict(_attributes)

        def _parse_bios_uuid(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        bios_uuid = _parse_bios_uuid(d.pop("bios_uuid", UNSET))

        def _parse_cmdline(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        cmdline = _parse_cmdline(d.pop("cmdline", UNSET))

        cpus = d.pop("cpus", UNSET)

        def _parse_datastore(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        datastore = _parse_datastore(d.pop("datastore", UNSET))

        _disks = d.pop("disks", UNSET)
        disks: list[DiskRequest] | Unset = UNSET
        if _disks is not UNSET:
            disks = []
            for disks_item_data in _disks:
                disks_item = DiskRequest.from_dict(disks_item_data)

                disks.append(disks_item)

        _engine = d.pop("engine", UNSET)
        engine: RunRequestEngine | Unset
        if isinstance(_engine, Unset):
            engine = UNSET
        else:
            engine = RunRequestEngine(_engine)

        def _parse_entry(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        entry = _parse_entry(d.pop("entry", UNSET))

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

        def _parse_image(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        image = _parse_image(d.pop("image", UNSET))

        def _parse_initrd(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        initrd = _parse_initrd(d.pop("initrd", UNSET))

        def _parse_kernel(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        kernel = _parse_kernel(d.pop("kernel", UNSET))

        memory_bytes = d.pop("memory_bytes", UNSET)

        def _parse_memory_limit_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        memory_limit_bytes = _parse_memory_limit_bytes(
            d.pop("memory_limit_bytes", UNSET)
        )

        _more_serial = d.pop("more_serial", UNSET)
        more_serial: (
            list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset
        ) = UNSET
        if _more_serial is not UNSET:
            more_serial = []
            for more_serial_item_data in _more_serial:

                def _parse_more_serial_item(
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

                more_serial_item = _parse_more_serial_item(more_serial_item_data)

                more_serial.append(more_serial_item)

        _nets = d.pop("nets", UNSET)
        nets: list[NetRequest] | Unset = UNSET
        if _nets is not UNSET:
            nets = []
            for nets_item_data in _nets:
                nets_item = NetRequest.from_dict(nets_item_data)

                nets.append(nets_item)

        def _parse_pool(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        pool = _parse_pool(d.pop("pool", UNSET))

        powered_off = d.pop("powered_off", UNSET)

        def _parse_serial(
            data: object,
        ) -> SerialRequestType0 | SerialRequestType1 | SerialRequestType2 | Unset:
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, str):
                    raise TypeError()
                componentsschemas_serial_request_type_0 = SerialRequestType0(data)

                return componentsschemas_serial_request_type_0
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            try:
                if not isinstance(data, dict):
                    raise TypeError()
                componentsschemas_serial_request_type_1 = SerialRequestType1.from_dict(
                    data
                )

                return componentsschemas_serial_request_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            if not isinstance(data, dict):
                raise TypeError()
            componentsschemas_serial_request_type_2 = SerialRequestType2.from_dict(data)

            return componentsschemas_serial_request_type_2

        serial = _parse_serial(d.pop("serial", UNSET))

        spare_disks = d.pop("spare_disks", UNSET)

        def _parse_uuid(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        uuid = _parse_uuid(d.pop("uuid", UNSET))

        def _parse_wait_ready_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        wait_ready_s = _parse_wait_ready_s(d.pop("wait_ready_s", UNSET))

        run_request = cls(
            name=name,
            addresses=addresses,
            annotation=annotation,
            attributes=attributes,
            bios_uuid=bios_uuid,
            cmdline=cmdline,
            cpus=cpus,
            datastore=datastore,
            disks=disks,
            engine=engine,
            entry=entry,
            folder=folder,
            guestinfo=guestinfo,
            image=image,
            initrd=initrd,
            kernel=kernel,
            memory_bytes=memory_bytes,
            memory_limit_bytes=memory_limit_bytes,
            more_serial=more_serial,
            nets=nets,
            pool=pool,
            powered_off=powered_off,
            serial=serial,
            spare_disks=spare_disks,
            uuid=uuid,
            wait_ready_s=wait_ready_s,
        )

        return run_request
