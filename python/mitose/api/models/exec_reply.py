from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from attrs import define as _attrs_define
from attrs import field as _attrs_field
from typing_extensions import Self

from ..types import UNSET, Unset

T = TypeVar("T", bound="ExecReply")


@_attrs_define
class ExecReply:
    """How a command in a guest ended.

    Attributes:
        stderr (str): What it wrote to standard error.
        stdout (str): What it wrote to standard output, as the request's `encoding` says.
        timed_out (bool): Its time was over; it was left to the guest's agent, which ends it.
        truncated (bool): More was written than the answer holds: 4 MiB of each.
        exit_code (int | None | Unset): Its exit code; 128 and the signal's number where a signal ended it; none where
            it was still
            running when its time was over.
    """

    stderr: str
    stdout: str
    timed_out: bool
    truncated: bool
    exit_code: int | None | Unset = UNSET
    additional_properties: dict[str, Any] = _attrs_field(init=False, factory=dict)

    def to_dict(self) -> dict[str, Any]:
        stderr = self.stderr

        stdout = self.stdout

        timed_out = self.timed_out

        truncated = self.truncated

        exit_code: int | None | Unset
        if isinstance(self.exit_code, Unset):
            exit_code = UNSET
        else:
            exit_code = self.exit_code

        field_dict: dict[str, Any] = {}
        field_dict.update(self.additional_properties)
        field_dict.update(
            {
                "stderr": stderr,
                "stdout": stdout,
                "timed_out": timed_out,
                "truncated": truncated,
            }
        )
        if exit_code is not UNSET:
            field_dict["exit_code"] = exit_code

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        d = dict(src_dict)
        stderr = d.pop("stderr")

        stdout = d.pop("stdout")

        timed_out = d.pop("timed_out")

        truncated = d.pop("truncated")

        def _parse_exit_code(data: object) -> int | None | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(int | None | Unset, data)

        exit_code = _parse_exit_code(d.pop("exit_code", UNSET))

        exec_reply = cls(
            stderr=stderr,
            stdout=stdout,
            timed_out=timed_out,
            truncated=truncated,
            exit_code=exit_code,
        )

        exec_reply.additional_properties = d
        return exec_reply

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
