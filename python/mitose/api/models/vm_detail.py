from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.persistence import Persistence
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.disk_detail import DiskDetail
    from ..models.disk_use import DiskUse
    from ..models.guest_info import GuestInfo
    from ..models.guest_reply import GuestReply
    from ..models.memory_use import MemoryUse
    from ..models.nic_detail import NicDetail
    from ..models.serial_detail import SerialDetail
    from ..models.stun_record import StunRecord
    from ..models.vm_attributes import VmAttributes


T = TypeVar("T", bound="VmDetail")


@_attrs_define
class VmDetail:
    """A VM as `info` shows it.

    Attributes:
        cpus (int): Number of vCPUs.
        engine (str): `kvm` or `soft`.
        generation (int): Forks between it and a VM that booted.
        memory_bytes (int): Guest RAM, bytes.
        name (str): Its name.
        ready (bool): The guest's agent said that it is ready.
        state (str): `creating`, `running`, `paused`, `frozen`, `paused: no space`, `poweredOff` or `out of memory`.
        cmdline (str): Kernel command line.
        created_at_ms (int): Milliseconds since 1970.
        disk (DiskUse): Host disk space of a VM.
        disks (list[DiskDetail]): Disks.
        kernel (str): Kernel file.
        machine_id (str): Machine id that the agent is told.
        memory (MemoryUse): Host memory of a VM.
        nics (list[NicDetail]): NICs.
        stuns (list[StunRecord]): Its own latest forks, oldest first.
        uuid (str): Instance and BIOS UUID.
        vsock (str): Unix socket that reaches the guest's vsock ports (`CONNECT <port>\\n`).
        annotation (str | Unset): Free text of a user.
        attributes (VmAttributes | Unset): Attributes that a user gave it.
        folder (str | Unset): Id of the folder that it lies in.
        fork_point (None | str | Unset): Id of the fork point that it is a child of.
        id (str | Unset): Its id, never used again.
        persistence (None | Persistence | Unset):
        source (None | str | Unset): Name of the VM it was cloned from, as it was then.
        template (bool | Unset): It is not to be started, only cloned.
        version (int | Unset): Rises with each change of its configuration; the `ETag` of the VM.
        datastore (str | Unset): Id of the datastore of its home and of what it writes.
        guest (GuestReply | None | Unset):
        guestinfo (GuestInfo | Unset): Values of guestinfo by key.
        image (None | str | Unset): Image it was made from.
        pid (int | None | Unset): Process, while it has one.
        pool (str | Unset): Id of the resource pool that it counts to.
        reason (None | str | Unset): Why it is in its state, where a fault or a person led there.
        serial (None | str | Unset): Where COM1's output goes.
        serial_ports (list[SerialDetail] | Unset): Serial ports.
        uid (int | None | Unset): User id of the process.
    """

    cpus: int
    engine: str
    generation: int
    memory_bytes: int
    name: str
    ready: bool
    state: str
    cmdline: str
    created_at_ms: int
    disk: DiskUse
    disks: list[DiskDetail]
    kernel: str
    machine_id: str
    memory: MemoryUse
    nics: list[NicDetail]
    stuns: list[StunRecord]
    uuid: str
    vsock: str
    annotation: str | Unset = UNSET
    attributes: VmAttributes | Unset = UNSET
    folder: str | Unset = UNSET
    fork_point: None | str | Unset = UNSET
    id: str | Unset = UNSET
    persistence: None | Persistence | Unset = UNSET
    source: None | str | Unset = UNSET
    template: bool | Unset = UNSET
    version: int | Unset = UNSET
    datastore: str | Unset = UNSET
    guest: GuestReply | None | Unset = UNSET
    guestinfo: GuestInfo | Unset = UNSET
    image: None | str | Unset = UNSET
    pid: int | None | Unset = UNSET
    pool: str | Unset = UNSET
    reason: None | str | Unset = UNSET
    serial: None | str | Unset = UNSET
    serial_ports: list[SerialDetail] | Unset = UNSET
    uid: int | None | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        from ..models.guest_reply import GuestReply

        cpus = self.cpus

        engine = self.engine

        generation = self.generation

        memory_bytes = self.memory_bytes

        name = self.name

        ready = self.ready

        state = self.state

        cmdline = self.cmdline

        created_at_ms = self.created_at_ms

        disk = self.disk.to_dict()

        disks = []
        for disks_item_data in self.disks:
            disks_item = disks_item_data.to_dict()
            disks.append(disks_item)

        kernel = self.kernel

        machine_id = self.machine_id

        memory = self.memory.to_dict()

        nics = []
        for nics_item_data in self.nics:
            nics_item = nics_item_data.to_dict()
            nics.append(nics_item)

        stuns = []
        for stuns_item_data in self.stuns:
            stuns_item = stuns_item_data.to_dict()
            stuns.append(stuns_item)

        uuid = self.uuid

        vsock = self.vsock

        annotation = self.annotation

        attributes: dict[str, Any] | Unset = UNSET
        if not isinstance(self.attributes, Unset):
            attributes = self.attributes.to_dict()

        folder = self.folder

        fork_point: None | str | Unset
        if isinstance(self.fork_point, Unset):
            fork_point = UNSET
        else:
            fork_point = self.fork_point

        id = self.id

        persistence: None | str | Unset
        if isinstance(self.persistence, Unset):
            persistence = UNSET
        elif isinstance(self.persistence, Persistence):
            persistence = self.persistence.value
        else:
            persistence = self.persistence

        source: None | str | Unset
        if isinstance(self.source, Unset):
            source = UNSET
        else:
            source = self.source

        template = self.template

        version = self.version

        datastore = self.datastore

        guest: dict[str, Any] | None | Unset
        if isinstance(self.guest, Unset):
            guest = UNSET
        elif isinstance(self.guest, GuestReply):
            guest = self.guest.to_dict()
        else:
            guest = self.guest

        guestinfo: dict[str, Any] | Unset = UNSET
        if not isinstance(self.guestinfo, Unset):
            guestinfo = self.guestinfo.to_dict()

        image: None | str | Unset
        if isinstance(self.image, Unset):
            image = UNSET
        else:
            image = self.image

        pid: int | None | Unset
        if isinstance(self.pid, Unset):
            pid = UNSET
        else:
            pid = self.pid

        pool = self.pool

        reason: None | str | Unset
        if isinstance(self.reason, Unset):
            reason = UNSET
        else:
            reason = self.reason

        serial: None | str | Unset
        if isinstance(self.serial, Unset):
            serial = UNSET
        else:
            serial = self.serial

        serial_ports: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.serial_ports, Unset):
            serial_ports = []
            for serial_ports_item_data in self.serial_ports:
                serial_ports_item = serial_ports_item_data.to_dict()
                serial_ports.append(serial_ports_item)

        uid: int | None | Unset
        if isinstance(self.uid, Unset):
            uid = UNSET
        else:
            uid = self.uid

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "cpus": cpus,
                "engine": engine,
                "generation": generation,
                "memory_bytes": memory_bytes,
                "name": name,
                "ready": ready,
                "state": state,
                "cmdline": cmdline,
                "created_at_ms": created_at_ms,
                "disk": disk,
                "disks": disks,
                "kernel": kernel,
                "machine_id": machine_id,
                "memory": memory,
                "nics": nics,
                "stuns": stuns,
                "uuid": uuid,
                "vsock": vsock,
            }
        )
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes
        if folder is not UNSET:
            field_dict["folder"] = folder
        if fork_point is not UNSET:
            field_dict["fork_point"] = fork_point
        if id is not UNSET:
            field_dict["id"] = id
        if persistence is not UNSET:
            field_dict["persistence"] = persistence
        if source is not UNSET:
            field_dict["source"] = source
        if template is not UNSET:
            field_dict["template"] = template
        if version is not UNSET:
            field_dict["version"] = version
        if datastore is not UNSET:
            field_dict["datastore"] = datastore
        if guest is not UNSET:
            field_dict["guest"] = guest
        if guestinfo is not UNSET:
            field_dict["guestinfo"] = guestinfo
        if image is not UNSET:
            field_dict["image"] = image
        if pid is not UNSET:
            field_dict["pid"] = pid
        if pool is not UNSET:
            field_dict["pool"] = pool
        if reason is not UNSET:
            field_dict["reason"] = reason
        if serial is not UNSET:
            field_dict["serial"] = serial
        if serial_ports is not UNSET:
            field_dict["serial_ports"] = serial_ports
        if uid is not UNSET:
            field_dict["uid"] = uid

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.disk_detail import DiskDetail
        from ..models.disk_use import DiskUse
        from ..models.guest_info import GuestInfo
        from ..models.guest_reply import GuestReply
        from ..models.memory_use import MemoryUse
        from ..models.nic_detail import NicDetail
        from ..models.serial_detail import SerialDetail
        from ..models.stun_record import StunRecord
        from ..models.vm_attributes import VmAttributes

        d = dict(src_dict)
        cpus = d.pop("cpus")

        engine = d.pop("engine")

        generation = d.pop("generation")

        memory_bytes = d.pop("memory_bytes")

        name = d.pop("name")

        ready = d.pop("ready")

        state = d.pop("state")

        cmdline = d.pop("cmdline")

        created_at_ms = d.pop("created_at_ms")

        disk = DiskUse.from_dict(d.pop("disk"))

        disks = []
        _disks = d.pop("disks")
        for disks_item_data in _disks:
            disks_item = DiskDetail.from_dict(disks_item_data)

            disks.append(disks_item)

        kernel = d.pop("kernel")

        machine_id = d.pop("machine_id")

        memory = MemoryUse.from_dict(d.pop("memory"))

        nics = []
        _nics = d.pop("nics")
        for nics_item_data in _nics:
            nics_item = NicDetail.from_dict(nics_item_data)

            nics.append(nics_item)

        stuns = []
        _stuns = d.pop("stuns")
        for stuns_item_data in _stuns:
            stuns_item = StunRecord.from_dict(stuns_item_data)

            stuns.append(stuns_item)

        uuid = d.pop("uuid")

        vsock = d.pop("vsock")

        annotation = d.pop("annotation", UNSET)

        _attributes = d.pop("attributes", UNSET)
        attributes: VmAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = VmAttributes.from_dict(_attributes)

        folder = d.pop("folder", UNSET)

        def _parse_fork_point(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        fork_point = _parse_fork_point(d.pop("fork_point", UNSET))

        id = d.pop("id", UNSET)

        def _parse_persistence(data: object) -> None | Persistence | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, str):
                    raise TypeError()
                persistence_type_1 = Persistence(data)

                return persistence_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            return cast(None | Persistence | Unset, data)

        persistence = _parse_persistence(d.pop("persistence", UNSET))

        def _parse_source(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        source = _parse_source(d.pop("source", UNSET))

        template = d.pop("template", UNSET)

        version = d.pop("version", UNSET)

        datastore = d.pop("datastore", UNSET)

        def _parse_guest(data: object) -> GuestReply | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, dict):
                    raise TypeError()
                guest_type_1 = GuestReply.from_dict(data)

                return guest_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            return cast(GuestReply | None | Unset, data)

        guest = _parse_guest(d.pop("guest", UNSET))

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

        def _parse_pid(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        pid = _parse_pid(d.pop("pid", UNSET))

        pool = d.pop("pool", UNSET)

        def _parse_reason(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        reason = _parse_reason(d.pop("reason", UNSET))

        def _parse_serial(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        serial = _parse_serial(d.pop("serial", UNSET))

        _serial_ports = d.pop("serial_ports", UNSET)
        serial_ports: list[SerialDetail] | Unset = UNSET
        if _serial_ports is not UNSET:
            serial_ports = []
            for serial_ports_item_data in _serial_ports:
                serial_ports_item = SerialDetail.from_dict(serial_ports_item_data)

                serial_ports.append(serial_ports_item)

        def _parse_uid(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        uid = _parse_uid(d.pop("uid", UNSET))

        vm_detail = cls(
            cpus=cpus,
            engine=engine,
            generation=generation,
            memory_bytes=memory_bytes,
            name=name,
            ready=ready,
            state=state,
            cmdline=cmdline,
            created_at_ms=created_at_ms,
            disk=disk,
            disks=disks,
            kernel=kernel,
            machine_id=machine_id,
            memory=memory,
            nics=nics,
            stuns=stuns,
            uuid=uuid,
            vsock=vsock,
            annotation=annotation,
            attributes=attributes,
            folder=folder,
            fork_point=fork_point,
            id=id,
            persistence=persistence,
            source=source,
            template=template,
            version=version,
            datastore=datastore,
            guest=guest,
            guestinfo=guestinfo,
            image=image,
            pid=pid,
            pool=pool,
            reason=reason,
            serial=serial,
            serial_ports=serial_ports,
            uid=uid,
        )

        vm_detail.additional_properties = d
        return vm_detail

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
