from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..models.serial_request_type_0 import SerialRequestType0
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.serial_request_type_1 import SerialRequestType1
    from ..models.serial_request_type_2 import SerialRequestType2


T = TypeVar("T", bound="SerialDetail")


@_attrs_define
class SerialDetail:
    """One serial port of a VM.

    Attributes:
        backend (SerialRequestType0 | SerialRequestType1 | SerialRequestType2): Back end of a serial port: a log in the
            VM's home folder, nothing, a pseudo-terminal beside the log, or a file or socket of the host.
        port (str): Its name: COM1 to COM4.
        log (None | str | Unset): File that its output is appended to.
        path (None | str | Unset): Where to type and read: the pseudo-terminal of a running VM, or the socket.
    """

    backend: SerialRequestType0 | SerialRequestType1 | SerialRequestType2
    port: str
    log: None | str | Unset = UNSET
    path: None | str | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        from ..models.serial_request_type_1 import SerialRequestType1

        backend: dict[str, Any] | str
        if isinstance(self.backend, SerialRequestType0):
            backend = self.backend.value
        elif isinstance(self.backend, SerialRequestType1):
            backend = self.backend.to_dict()
        else:
            backend = self.backend.to_dict()

        port = self.port

        log: None | str | Unset
        if isinstance(self.log, Unset):
            log = UNSET
        else:
            log = self.log

        path: None | str | Unset
        if isinstance(self.path, Unset):
            path = UNSET
        else:
            path = self.path

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "backend": backend,
                "port": port,
            }
        )
        if log is not UNSET:
            field_dict["log"] = log
        if path is not UNSET:
            field_dict["path"] = path

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.serial_request_type_1 import SerialRequestType1
        from ..models.serial_request_type_2 import SerialRequestType2

        d = dict(src_dict)

        def _parse_backend(
            data: object,
        ) -> SerialRequestType0 | SerialRequestType1 | SerialRequestType2:
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

        backend = _parse_backend(d.pop("backend"))

        port = d.pop("port")

        def _parse_log(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        log = _parse_log(d.pop("log", UNSET))

        def _parse_path(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        path = _parse_path(d.pop("path", UNSET))

        serial_detail = cls(
            backend=backend,
            port=port,
            log=log,
            path=path,
        )

        serial_detail.additional_properties = d
        return serial_detail

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
