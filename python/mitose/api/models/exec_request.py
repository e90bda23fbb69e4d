from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define as _attrs_define
from typing_extensions import Self

from ..models.encoding import Encoding
from ..types import UNSET, Unset

if TYPE_CHECKING:
    from ..models.exec_request_env import ExecRequestEnv


T = TypeVar("T", bound="ExecRequest")


@_attrs_define
class ExecRequest:
    """Run a command in a guest.

    Attributes:
        argv (list[str]):
        cwd (None | str | Unset):
        encoding (Encoding | Unset): How bytes are written in JSON.
        env (ExecRequestEnv | Unset):
        stdin (str | Unset): What it reads from standard input.
        timeout_s (int | Unset): Longest time that it may take, seconds.
        user (None | str | Unset):
        wait_s (int | Unset): Longest wait for an agent that has not said yet that it is ready, seconds.
    """

    argv: list[str]
    cwd: None | str | Unset = UNSET
    encoding: Encoding | Unset = UNSET
    env: ExecRequestEnv | Unset = UNSET
    stdin: str | Unset = UNSET
    timeout_s: int | Unset = UNSET
    user: None | str | Unset = UNSET
    wait_s: int | Unset = UNSET

    def to_dict(self) -> dict[str, Any]:
        argv = self.argv

        cwd: None | str | Unset
        if isinstance(self.cwd, Unset):
            cwd = UNSET
        else:
            cwd = self.cwd

        encoding: str | Unset = UNSET
        if not isinstance(self.encoding, Unset):
            encoding = self.encoding.value

        env: dict[str, Any] | Unset = UNSET
        if not isinstance(self.env, Unset):
            env = self.env.to_dict()

        stdin = self.stdin

        timeout_s = self.timeout_s

        user: None | str | Unset
        if isinstance(self.user, Unset):
            user = UNSET
        else:
            user = self.user

        wait_s = self.wait_s

        field_dict: dict[str, Any] = {}

        field_dict.update(
            {
                "argv": argv,
            }
        )
        if cwd is not UNSET:
            field_dict["cwd"] = cwd
        if encoding is not UNSET:
            field_dict["encoding"] = encoding
        if env is not UNSET:
            field_dict["env"] = env
        if stdin is not UNSET:
            field_dict["stdin"] = stdin
        if timeout_s is not UNSET:
            field_dict["timeout_s"] = timeout_s
        if user is not UNSET:
            field_dict["user"] = user
        if wait_s is not UNSET:
            field_dict["wait_s"] = wait_s

        return field_dict

    @classmethod
    def from_dict(cls, src_dict: Mapping[str, Any]) -> Self:
        from ..models.exec_request_env import ExecRequestEnv

        d = dict(src_dict)
        argv = cast(list[str], d.pop("argv"))

        def _parse_cwd(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        cwd = _parse_cwd(d.pop("cwd", UNSET))

        _encoding = d.pop("encoding", UNSET)
        encoding: Encoding | Unset
        if isinstance(_encoding, Unset):
            encoding = UNSET
        else:
            encoding = Encoding(_encoding)

        _env = d.pop("env", UNSET)
        env: ExecRequestEnv | Unset
        if isinstance(_env, Unset):
            env = UNSET
        else:
            env = ExecRequestEnv.from_dict(_env)

        stdin = d.pop("stdin", UNSET)

        timeout_s = d.pop("timeout_s", UNSET)

        def _parse_user(data: object) -> None | str | Unset:
            if data is None:
                return data
            if isinstance(data, Unset):
                return data
            return cast(None | str | Unset, data)

        user = _parse_user(d.pop("user", UNSET))

        wait_s = d.pop("wait_s", UNSET)

        exec_request = cls(
            argv=argv,
            cwd=cwd,
            encoding=encoding,
            env=env,
            stdin=stdin,
            timeout_s=timeout_s,
            user=user,
            wait_s=wait_s,
        )

        return exec_request
