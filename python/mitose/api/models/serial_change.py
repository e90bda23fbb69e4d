from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.serial_request_type_0 import SerialRequestType0

if TYPE_CHECKING:
    from ..models.serial_request_type_1 import SerialRequestType1
    from ..models.serial_request_type_2 import SerialRequestType2


T = TypeVar("T", bound="SerialChange")


@_attrs_define
class SerialChange:
    """Change of one serial port.

    Attributes:
        backend (SerialRequestType0 | SerialRequestType1 | SerialRequestType2): Back end of a serial port: a log in the
            VM's home folder, nothing, a pseudo-terminal beside the log, or a file or socket of the host.
        port (int): Which, 0 is COM1.
    """

    backend: SerialRequestType0 | SerialRequestType1 | SerialRequestType2
    port: int

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

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "backend": backend,
                "port": port,
            }
        )

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

        serial_change = cls(
            backend=backend,
            port=port,
        )

        return serial_change
