from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.serial_request_type_0 import SerialRequestType0
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.clone_edit_attributes import CloneEditAttributes
    from ..models.extra_disk_request import ExtraDiskRequest
    from ..models.net_request import NetRequest
    from ..models.serial_request_type_1 import SerialRequestType1
    from ..models.serial_request_type_2 import SerialRequestType2


T = TypeVar("T", bound="CloneEdit")


@_attrs_define
class CloneEdit:
    """What is special about one clone of a call.

    Attributes:
        annotation (None | str | Unset):
        attributes (CloneEditAttributes | Unset):
        bios_uuid (None | str | Unset):
        extra_disks (list[ExtraDiskRequest] | Unset): Disks for the source's spare slots, in their order, in the place
            of those of the request.
        folder (None | str | Unset):
        nets (list[NetRequest] | Unset): NICs, in the source's order; those not given are on the source's networks.
        serial (list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset): Back ends of serial ports,
            COM1 first.
        uuid (None | str | Unset):
    """

    annotation: None | str | Unset = UNSET
    attributes: CloneEditAttributes | Unset = UNSET
    bios_uuid: None | str | Unset = UNSET
    extra_disks: list[ExtraDiskRequest] | Unset = UNSET
    folder: None | str | Unset = UNSET
    nets: list[NetRequest] | Unset = UNSET
    serial: (
        list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset
    ) = UNSET
    uuid: None | str | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        from ..models.serial_request_type_1 import SerialRequestType1

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

        extra_disks: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.extra_disks, Unset):
            extra_disks = []
            for extra_disks_item_data in self.extra_disks:
                extra_disks_item = extra_disks_item_data.to_dict()
                extra_disks.append(extra_disks_item)

        folder: None | str | Unset
        if isinstance(self.folder, Unset):
            folder = UNSET
        else:
            folder = self.folder

        nets: list[dict[str, Any]] | Unset = UNSET
        if not isinstance(self.nets, Unset):
            nets = []
            for nets_item_data in self.nets:
                nets_item = nets_item_data.to_dict()
                nets.append(nets_item)

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

        uuid: None | str | Unset
        if isinstance(self.uuid, Unset):
            uuid = UNSET
        else:
            uuid = self.uuid

        field_dict: dict[str, Any] = {}

        field_dict.update({})
        if annotation is not UNSET:
            field_dict["annotation"] = annotation
        if attributes is not UNSET:
            field_dict["attributes"] = attributes
        if bios_uuid is not UNSET:
            field_dict["bios_uuid"] = bios_uuid
        if extra_disks is not UNSET:
            field_dict["extra_disks"] = extra_disks
        if folder is not UNSET:
            field_dict["folder"] = folder
        if nets is not UNSET:
            field_dict["nets"] = nets
        if serial is not UNSET:
            field_dict["serial"] = serial
        if uuid is not UNSET:
            field_dict["uuid"] = uuid

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.clone_edit_attributes import CloneEditAttributes
        from ..models.extra_disk_request import ExtraDiskRequest
        from ..models.net_request import NetRequest
        from ..models.serial_request_type_1 import SerialRequestType1
        from ..models.serial_request_type_2 import SerialRequestType2

        d = dict(src_dict)

        def _parse_annotation(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        annotation = _parse_annotation(d.pop("annotation", UNSET))

        _attributes = d.pop("attributes", UNSET)
        attributes: CloneEditAttributes | Unset
        if isinstance(_attributes, Unset):
            attributes = UNSET
        else:
            attributes = CloneEditAttributes.from_dict(_attributes)

        def _parse_bios_uuid(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        bios_uuid = _parse_bios_uuid(d.pop("bios_uuid", UNSET))

        _extra_disks = d.pop("extra_disks", UNSET)
        extra_disks: list[ExtraDiskRequest] | Unset = UNSET
        if _extra_disks is not UNSET:
            extra_disks = []
            for extra_disks_item_data in _extra_disks:
                extra_disks_item = ExtraDiskRequest.from_dict(extra_disks_item_data)

                extra_disks.append(extra_disks_item)

        def _parse_folder(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        folder = _parse_folder(d.pop("folder", UNSET))

        _nets = d.pop("nets", UNSET)
        nets: list[NetRequest] | Unset = UNSET
        if _nets is not UNSET:
            nets = []
            for nets_item_data in _nets:
                nets_item = NetRequest.from_dict(nets_item_data)

                nets.append(nets_item)

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

        def _parse_uuid(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        uuid = _parse_uuid(d.pop("uuid", UNSET))

        clone_edit = cls(
            annotation=annotation,
            attributes=attributes,
            bios_uuid=bios_uuid,
            extra_disks=extra_disks,
            folder=folder,
            nets=nets,
            serial=serial,
            uuid=uuid,
        )

        return clone_edit
