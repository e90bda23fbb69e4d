"""Client of a Mitose daemon, over its Unix socket or TLS.

    with Mitose() as mitose:
        for worker in mitose.fork("web", count=3):
            print(mitose.exec(worker, ["hostname"]).stdout)

Everything that the API offers is in `mitose.api`, which is generated from its OpenAPI document and
takes `Mitose.client`; this layer is what scripts need most.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from .api.client import Client

__all__ = ["ExecFailed", "Mitose", "Refused", "Result"]

T = TypeVar("T")
R = TypeVar("R")

#: Longest wait for an answer, seconds: `exec` waits for the end of its command.
TIMEOUT_S = 3700.0


class Refused(Exception):
    """The daemon refused, or tried and failed."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem.get("error") or "it failed")
        #: What kind of failure, such as `not_found`.
        self.kind: str = problem.get("kind") or problem.get("error_kind") or "failed"
        #: Member of the request that is wrong, where it is one.
        self.field: str | None = problem.get("field")
        #: What to do about it.
        self.remedy: str | None = problem.get("remedy")


class ExecFailed(Exception):
    """A command in a guest ended with an exit code other than 0, or not in time."""

    def __init__(self, result: "Result") -> None:
        why = "not in time" if result.timed_out else f"exit code {result.exit_code}"
        super().__init__(f"the command ended badly ({why}): {result.stderr.strip()}")
        self.result = result


class Result:
    """How a command in a guest ended."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self.exit_code: int | None = reply["exit_code"]
        self.stdout: str = reply["stdout"]
        self.stderr: str = reply["stderr"]
        self.truncated: bool = reply["truncated"]
        self.timed_out: bool = reply["timed_out"]


class Mitose:
    """A daemon: the one of `home`, or the one at `url` with a token.

    Without arguments it is what MITOSE_URL, MITOSE_TOKEN and MITOSE_CA say, or the daemon of
    MITOSE_HOME on this host.
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        url: str | None = None,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
    ) -> None:
        url = url or (os.environ.get("MITOSE_URL") if home is None else None)
        timeout = httpx.Timeout(TIMEOUT_S)
        if url:
            token = token or os.environ.get("MITOSE_TOKEN", "")
            ca = ca or os.environ.get("MITOSE_CA")
            verify: Any = ssl.create_default_context(cafile=os.fspath(ca)) if ca else True
            headers = {"Authorization": f"Bearer {token}"}
            self.client = Client(base_url=url.rstrip("/"), headers=headers, verify_ssl=verify, timeout=timeout)
        else:
            socket = Path(home or os.environ.get("MITOSE_HOME") or _default_home()) / "run" / "mitosed.sock"
            transport = httpx.HTTPTransport(uds=os.fspath(socket))
            self.client = Client(base_url="http://mitosed", timeout=timeout, httpx_args={"transport": transport})

    def __enter__(self) -> "Mitose":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self.client.get_httpx_client().close()

    def run(self, name: str, **spec: Any) -> dict[str, Any]:
        """Makes a VM and boots it; `spec` has the members of a `RunRequest`, such as `image`."""
        return self._task("/vms", {"name": name, **spec})

    def vms(self) -> list[dict[str, Any]]:
        """All VMs."""
        return self._ask("GET", "/vms")

    def fork(
        self, source: str, names: Sequence[str] | None = None, count: int | None = None, **spec: Any
    ) -> list[str]:
        """Forks a running VM; returns the names of the clones. All of them exist, or it raises."""
        names = list(names) if names else [f"{source}-{n}" for n in range(1, (count or 1) + 1)]
        cloned = self._task(f"/vms/{quote(source, safe='')}/fork", {"names": names, **spec})
        for clone in cloned["clones"]:
            if clone.get("error"):
                raise Refused({"detail": f"{clone['name']}: {clone['error']}"})
        return names

    def exec(self, vm: str, argv: Sequence[str], *, check: bool = True, **spec: Any) -> Result:
        """Runs a command in a guest to its end; with `check`, a bad end raises `ExecFailed`."""
        path = f"/vms/{quote(vm, safe='')}/exec"
        result = Result(self._ask("POST", path, {"argv": list(argv), **spec}))
        if check and result.exit_code != 0:
            raise ExecFailed(result)
        return result

    def remove(self, vm: str, force: bool = True) -> None:
        """Removes a VM."""
        self._ask("DELETE", f"/vms/{quote(vm, safe='')}?force={str(force).lower()}")

    @contextmanager
    def workers(self, source: str, count: int) -> Iterator[list[str]]:
        """Forks `count` workers, which are removed at the end."""
        names = self.fork(source, count=count)
        try:
            yield names
        finally:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(self.remove, names))

    def map(
        self, function: Callable[[str, T], R], workers: Sequence[str], items: Iterable[T], at_once: int = 16
    ) -> list[R]:
        """Calls `function(worker, item)` for each item, on the workers in turn; results in order."""
        jobs = [(workers[index % len(workers)], item) for index, item in enumerate(items)]
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda job: function(*job), jobs))

    def _task(self, path: str, body: dict[str, Any]) -> Any:
        task = self._ask("POST", f"{path}?wait=true", body)
        # An answer waits for some seconds at most.
        while task["state"] == "running":
            task = self._ask("GET", f"/tasks/{task['id']}?wait=true")
        if task["state"] != "success":
            raise Refused(task)
        return task["result"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self.client.get_httpx_client().request(method, f"/api/v1{path}", json=body)
        if response.is_success:
            return response.json() if response.content else None
        try:
            problem = response.json()
        except json.JSONDecodeError:
            problem = {"detail": f"the daemon answered with HTTP status {response.status_code}"}
        raise Refused(problem)


def _default_home() -> str:
    return "/var/lib/mitose" if os.geteuid() == 0 else os.path.expanduser("~/.local/share/mitose")
