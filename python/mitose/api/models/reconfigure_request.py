from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.reconfigure_request_engine_type_1 import ReconfigureRequestEngineType1
from ..models.reconfigure_request_engine_type_2_type_1 import (
    ReconfigureRequestEngineType2Type1,
)
from ..models.reconfigure_request_engine_type_3_type_1 import (
    ReconfigureRequestEngineType3Type1,
)
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.disk_request import DiskRequest
    from ..models.extra_disk_request import ExtraDiskRequest
    from ..models.net_request import NetRequest
    from ..models.nic_change import NicChange
    from ..models.reconfigure_request_attributes import ReconfigureRequestAttributes
    from ..models.serial_change import SerialChange


T = TypeVar("T", bound="ReconfigureRequest")


@_attrs_define
class ReconfigureRequest:
    """Change a VM. What is not given stays. Name, folder, pool, annotation, attributes, cables, back ends
    of serial ports and disks for empty slots can change at any time, everything else while the VM is
    off.

        Attributes:
            add_disks (list[DiskRequest] | Unset): Disks to add behind those it has.
            add_nics (list[NetRequest] | Unset): NICs to add behind those it has.
            annotation (None | str | Unset):
            attributes (ReconfigureRequestAttributes | Unset):
            bios_uuid (None | str | Unset):
            cmdline (None | str | Unset):
            cpus (int | None | Unset):
            engine (None | ReconfigureRequestEngineType1 | ReconfigureRequestEngineType2Type1 |
                ReconfigureRequestEngineType3Type1 | Unset):
            folder (None | str | Unset):
            insert_disks (list[ExtraDiskRequest] | Unset): Disks to put into its empty slots in their order, also while it
                runs.
            memory_bytes (int | None | Unset):
            memory_limit_bytes (int | None | Unset):
            name (None | str | Unset):
            nics (list[NicChange] | Unset): Cables and networks of NICs.
            pool (None | str | Unset):
            remove_disks (list[int] | Unset):
            remove_nics (list[int] | Unset):
            serial (list[SerialChange] | Unset): Back ends of serial ports.
            serial_ports (int | None | Unset): Number of serial ports; new ones are logs.
            spare_disks (int | None | Unset): Number of empty disk slots that it is to have.
            template (bool | None | Unset): Mark it as a template, or take the mark off.
            uuid (None | str | Unset):
    """

    add_disks: list[DiskRequest] | Unset = UNSET
    add_nics: list[NetRequest] | Unset = UNSET
    annotation: None | str | Unset = UNSET
    attributes: ReconfigureRequestAttributes | Unset = UNSET
    bios_uuid: None | str | Unset = UNSET
    cmdline: None | str | Unset = UNSET
    cpus: int | None | Unset = UNSET
    engine: (
        None
        | ReconfigureRequestEngineType1
        | ReconfigureRequestEngineType2Type1
        | ReconfigureRequestEngineType3Type1
        | Unset
    ) = UNSET
    folder: None | str | Unset = UNSET
    insert_disks: list[ExtraDiskRequest] | Unset = UNSET
    memory_bytes: int | None | Unset = UNSET
    memory_limit_bytes: int | None | Unset = UNSET
    name: None | str | Unset = UNSET
    nics: list[NicChange] | Unset = UNSET
    pool: None | str | Unset = UNSET
    remove_disks: list[int] | Unset = UNSET
    remove_nics: list[int] | Unset = UNSET
    serial: list[SerialChange] | Unset = UNSET
    serial_ports: int | None | Unset = UNSET
    spare_disks: int | None | Unset = UNSET
    template: bool | None | Unset = UNSET
    uuid: None | str | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        add_disks: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.add_disks, Unset):
            add_disks = []
            for add_disks_item_data in self.add_disks:
                add_disks_item = add_disks_item_data.to_dict()
                add_disks.append(add_disks_item)

        add_nics: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.add_nics, Unset):
            add_nics = []
            for add_nics_item_data in self.add_nics:
                add_nics_item = add_nics_item_data.to_dict()
                add_nics.append(add_nics_item)

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

        cpus: int | None | Unset
        if isinstance(self.cpus, Unset):
            cpus = UNSET
        else:
            cpus = self.cpus

        engine: None | str | Unset
        if isinstance(self.engine, Unset):
            engine = UNSET
        elif (
            isinstance(self.engine, ReconfigureRequestEngineType1)
            or isinstance(self.engine, ReconfigureRequestEngineType2Type1)
            or isinstance(self.engine, ReconfigureRequestEngineType3Type1)
        ):
            engine = self.engine.value
        else:
            engine = self.engine

        folder: None | str | Unset
        if isinstance(self.folder, Unset):
            folder = UNSET
        else:
            folder = self.folder

        insert_disks: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.insert_disks, Unset):
            insert_disks = []
            for insert_disks_item_data in self.insert_disks:
                insert_disks_item = insert_disks_item_data.to_dict()
                insert_disks.append(insert_disks_item)

        memory_bytes: int | None | Unset
        if isinstance(self.memory_bytes, Unset):
            memory_bytes = UNSET
        else:
            memory_bytes = self.memory_bytes

        memory_limit_bytes: int | None | Unset
        if isinstance(self.memory_limit_bytes, Unset):
            memory_limit_bytes = UNSET
        else:
            memory_limit_bytes = self.memory_limit_bytes

        name: None | str | Unset
        if isinstance(self.name, Unset):
            name = UNSET
        else:
            name = self.name

        nics: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.nics, Unset):
            nics = []
            for nics_item_data in self.nics:
                nics_item = nics_item_data.to_dict()
                nics.append(nics_item)

        pool: None | str | Unset
        if isinstance(self.pool, Unset):
            pool = UNSET
        else:
            pool = self.pool

        remove_disks: list[int] | Unset = UNSET
        if not isinstance(self.remove_disks, Unset):
            remove_disks = self.remove_disks

        remove_nics: list[int] | Unset = UNSET
        if not isinstance(self.remove_nics, Unset):
            remove_nics = self.remove_nics

        serial: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.serial, Unset):
            serial = []
            for serial_item_data in self.serial:
                serial_item = serial_item_data.to_dict()
                serial.append(serial_item)

        serial_ports: int | None | Unset
        if isinstance(self.serial_ports, Unset):
            serial_ports = UNSET
        else:
            serial_ports = self.serial_ports

        spare_disks: int | None | Unset
        if isinstance(self.spare_disks, Unset):
            spare_disks = UNSET
        else:
            spare_disks = self.spare_disks

        template: bool | None | Unset
        if isinstance(self.template, Unset):
            template = UNSET
        else:
            template = self.template

        uuid: None | str | Unset
        if isinstance(self.uuid, Unset):
            uuid = UNSET
        else:
            uuid = self.uuid

        field_dict: dict[str, Any] = {}

        field_dict.update({})
        if add_disks is not UNSET:
            field_dict["add_disks"] = add_disks
        if add_nics is not UNSET:
            field_dict["add_nics"] = add_nics
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
        if engine is not UNSET:
            field_dict["engine"] = engine
        if folder is not UNSET:
            field_dict["folder"] = folder
        if insert_disks is not UNSET:
            field_dict["insert_disks"] = insert_disks
        if memory_bytes is not UNSET:
            field_dict["memory_bytes"] = memory_bytes
        if memory_limit_bytes is not UNSET:
            field_dict["memory_limit_bytes"] = memory_limit_bytes
        if name is not UNSET:
            field_dict["name"] = name
        if nics is not UNSET:
            field_dict["nics"] = nics
        if pool is not UNSET:
            field_dict["pool"] = pool
        if remove_disks is not UNSET:
            field_dict["remove_disks"] = remove_disks
        if remove_nics is not UNSET:
            field_dict["remove_nics"] = remove_nics
        if serial is not UNSET:
            field_dict["serial"] = serial
        if serial_ports is not UNSET:
            field_dict["serial_ports"] = serial_ports
        if spare_disks is not UNSET:
            field_dict["spare_disks"] = spare_disks
        if template is not UNSET:
            field_dict["template"] = template
        if uuid is not UNSET:
            field_dict["uuid"] = uuid

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.disk_request import DiskRequest
        from ..models.extra_disk_request import ExtraDiskRequest
        from ..models.net_request import NetRequest
        from ..models.nic_change import NicChange
        from ..models.reconfigure_request_attributes import ReconfigureRequestAttributes
        from ..models.serial_change import SerialChange

        d = dict(src_dict)
        _add_disks = d.pop("add_disks", UNSET)
        add_disks: list[DiskRequest] | Unset = UNSET
        if _add_disks is not UNSET:
            add_disks = []
            for add_disks_item_data in _add_disks:
                add_disks_item = DiskRequest.from_dict(add_disks_item_data)

                add_disks.append(add_disks_item)

        _add_nics = d.pop("add_nics", UNSET)
        add_nics: list[NetRequest] | Unset = UNSET
        if _add_nics is not UNSET:
            add_nics = []
            for add_nics_item_data in _add_nics:
                add_nics_item = NetRequest.from_dict(add_nics_item_data)

                add_nics.append(add_nics_item)

        def _parse_annotation(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        annotation = _parse_annotation(d.pop("annotation", UNSET))

        _attributes = d.pop("attributes", UNSET)
        attributes: ReconfigureRequestAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = ReconfigureRequestAttributes.from_dict(_attributes)

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

        def _parse_cpus(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        cpus = _parse_cpus(d.pop("cpus", UNSET))

        def _parse_engine(
            data: object,
        ) -> (
            None
            | ReconfigureRequestEngineType1
            | ReconfigureRequestEngineType2Type1
            | ReconfigureRequestEngineType3Type1
            | Unset
        ):
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            try:
                if not isinstance(data, str):
                    raise TypeError()
                engine_type_1 = ReconfigureRequestEngineType1(data)

                return engine_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            try:
                if not isinstance(data, str):
                    raise TypeError()
                engine_type_2_type_1 = ReconfigureRequestEngineType2Type1(data)

                return engine_type_2_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            try:
                if not isinstance(data, str):
                    raise TypeError()
                engine_type_3_type_1 = ReconfigureRequestEngineType3Type1(data)

                return engine_type_3_type_1
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            return cast(
                None
                | ReconfigureRequestEngineType1
                | ReconfigureRequestEngineType2Type1
                | ReconfigureRequestEngineType3Type1
                | Unset,
                data,
            )

        engine = _parse_engine(d.pop("engine", UNSET))

        def _parse_folder(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        folder = _parse_folder(d.pop("folder", UNSET))

        _insert_disks = d.pop("insert_disks", UNSET)
        insert_disks: list[ExtraDiskRequest] | Unset = UNSET
        if _insert_disks is not UNSET:
            insert_disks = []
            for insert_disks_item_data in _insert_disks:
                insert_disks_item = ExtraDiskRequest.from_dict(insert_disks_item_data)

                insert_disks.append(insert_disks_item)

        def _parse_memory_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        memory_bytes = _parse_memory_bytes(d.pop("memory_bytes", UNSET))

        def _parse_memory_limit_bytes(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        memory_limit_bytes = _parse_memory_limit_bytes(
            d.pop("memory_limit_bytes", UNSET)
        )

        def _parse_name(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        name = _parse_name(d.pop("name", UNSET))

        _nics = d.pop("nics", UNSET)
        nics: list[NicChange] | Unset = UNSET
        if _nics is not UNSET:
            nics = []
            for nics_item_data in _nics:
                nics_item = NicChange.from_dict(nics_item_data)

                nics.append(nics_item)

        def _parse_pool(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        pool = _parse_pool(d.pop("pool", UNSET))

        remove_disks = cast(list[int], d.pop("remove_disks", UNSET))

        remove_nics = cast(list[int], d.pop("remove_nics", UNSET))

        _serial = d.pop("serial", UNSET)
        serial: list[SerialChange] | Unset = UNSET
        if _serial is not UNSET:
            serial = []
            for serial_item_data in _serial:
                serial_item = SerialChange.from_dict(serial_item_data)

                serial.append(serial_item)

        def _parse_serial_ports(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        serial_ports = _parse_serial_ports(d.pop("serial_ports", UNSET))

        def _parse_spare_disks(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        spare_disks = _parse_spare_disks(d.pop("spare_disks", UNSET))

        def _parse_template(data: object) -> bool | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(bool | None | Unset, data)

        template = _parse_template(d.pop("template", UNSET))

        def _parse_uuid(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        uuid = _parse_uuid(d.pop("uuid", UNSET))

        reconfigure_request = cls(
            add_disks=add_disks,
            add_nics=add_nics,
            annotation=annotation,
            attributes=attributes,
            bios_uuid=bios_uuid,
            cmdline=cmdline,
            cpus=cpus,
            engine=engine,
            folder=folder,
            insert_disks=insert_disks,
            memory_bytes=memory_bytes,
            memory_limit_bytes=memory_limit_bytes,
            name=name,
            nics=nics,
            pool=pool,
            remove_disks=remove_disks,
            remove_nics=remove_nics,
            serial=serial,
            serial_ports=serial_ports,
            spare_disks=spare_disks,
            template=template,
            uuid=uuid,
        )

        return reconfigure_request
