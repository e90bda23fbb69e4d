from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.clone_mode import CloneMode
from ..models.serial_request_type_0 import SerialRequestType0
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.net_request import NetRequest
    from ..models.serial_request_type_1 import SerialRequestType1
    from ..models.serial_request_type_2 import SerialRequestType2


T = TypeVar("T", bound="ForkRequest")


@_attrs_define
class ForkRequest:
    """Clone a VM.

    Attributes:
        names (list[str]):
        drain_ms_max (int | None | Unset): Longest time that disk requests in flight may take, milliseconds.
        fail_at (None | str | Unset): Step of the fork at which to fail, for tests of the failure paths.
        keep_mac (bool | Unset): The clones keep the source's hardware addresses and links.
        memory_limit_bytes (int | None | Unset):
        mode (CloneMode | Unset): How a clone is made.
        nets (list[NetRequest] | Unset): NICs of the clone, in the source's order, where only one is made.
        serial (list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset): Back ends of the clone's
            serial ports, COM1 first, where only one is made. Those not given
            are logs, or pseudo-terminals where the source has such.
        wait_ready_s (int | None | Unset):
    """

    names: list[str]
    drain_ms_max: int | None | Unset = UNSET
    fail_at: None | str | Unset = UNSET
    keep_mac: bool | Unset = UNSET
    memory_limit_bytes: int | None | Unset = UNSET
    mode: CloneMode | Unset = UNSET
    nets: list[NetRequest] | Unset = UNSET
    serial: (
        list[SerialRequestType0 | SerialRequestType1 | SerialRequestType2] | Unset
    ) = UNSET
    wait_ready_s: int | None | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        from ..models.serial_request_type_1 import SerialRequestType1

        names = self.names

        drain_ms_max: int | None | Unset
        if isinstance(self.drain_ms_max, Unset):
            drain_ms_max = UNSET
        else:
            drain_ms_max = self.drain_ms_max

        fail_at: None | str | Unset
        if isinstance(self.fail_at, Unset):
            fail_at = UNSET
        else:
            fail_at = self.fail_at

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
        if drain_ms_max is not UNSET:
            field_dict["drain_ms_max"] = drain_ms_max
        if fail_at is not UNSET:
            field_dict["fail_at"] = fail_at
        if keep_mac is not UNSET:
            field_dict["keep_mac"] = keep_mac
        if memory_limit_bytes is not UNSET:
            field_dict["memory_limit_bytes"] = memory_limit_bytes
        if mode is not UNSET:
            field_dict["mode"] = mode
        if nets is not UNSET:
            field_dict["nets"] = nets
        if serial is not UNSET:
            field_dict["serial"] = serial
        if wait_ready_s is not UNSET:
            field_dict["wait_ready_s"] = wait_ready_s

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.net_request import NetRequest
        from ..models.serial_request_type_1 import SerialRequestType1
        from ..models.serial_request_type_2 import SerialRequestType2

        d = dict(src_dict)
        names = cast(list[str], d.pop("names"))

        def _parse_drain_ms_max(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        drain_ms_max = _parse_drain_ms_max(d.pop("drain_ms_max", UNSET))

        def _parse_fail_at(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        fail_at = _parse_fail_at(d.pop("fail_at", UNSET))

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

        def _parse_wait_ready_s(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        wait_ready_s = _parse_wait_ready_s(d.pop("wait_ready_s", UNSET))

        fork_request = cls(
            names=names,
            drain_ms_max=drain_ms_max,
            fail_at=fail_at,
            keep_mac=keep_mac,
            memory_limit_bytes=memory_limit_bytes,
            mode=mode,
            nets=nets,
            serial=serial,
            wait_ready_s=wait_ready_s,
        )

        return fork_request
