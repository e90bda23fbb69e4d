from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx

from ... import errors
from ...client import AuthenticatedClient, Client
from ...models.dry_run import DryRun
from ...models.export_request import ExportRequest
from ...models.problem import Problem
from ...models.task import Task
from ...types import UNSET, Response, Unset


def _get_kwargs(
    vm: str,
    *,
    body: ExportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if not isinstance(idempotency_key, Unset):
        headers["Idempotency-Key"] = idempotency_key

    params: dict[str, Any] = {}

    params["wait"] = wait

    params["dry_run"] = dry_run

    params = {k: v for k, v in params.items() if v is not UNSET and v is not None}

    _kwargs: dict[str, Any] = {
        "method": "post",
        "url": "/api/v1/vms/{vm}/export".format(
            vm=quote(str(vm), safe=""),
        ),
        "params": params,
    }

    _kwargs["json"] = body.to_dict()

    headers["Content-Type"] = "application/json"

    _kwargs["headers"] = headers
    return _kwargs


def _parse_response(
    *, client: AuthenticatedClient | Client, response: httpx.Response
) -> DryRun | Task | Problem | None:
    if response.status_code == 200:

        def _parse_response_200(data: object) -> DryRun | Task:
            try:
                if not isinstance(data, dict):
                    raise TypeError()
                response_200_type_0 = Task.from_dict(data)

                return response_200_type_0
            except (TypeError, ValueError, AttributeError, KeyError):
                pass
            if not isinstance(data, dict):
                raise TypeError()
            response_200_type_1 = DryRun.from_dict(data)

            return response_200_type_1

        response_200 = _parse_response_200(response.json())

        return response_200

    if response.status_code == 202:
        response_202 = Task.from_dict(response.json())

        return response_202

    if response.status_code == 400:
        response_400 = Problem.from_dict(response.json())

        return response_400

    if response.status_code == 401:
        response_401 = Problem.from_dict(response.json())

        return response_401

    if response.status_code == 403:
        response_403 = Problem.from_dict(response.json())

        return response_403

    if response.status_code == 404:
        response_404 = Problem.from_dict(response.json())

        return response_404

    if response.status_code == 409:
        response_409 = Problem.from_dict(response.json())

        return response_409

    if response.status_code == 413:
        response_413 = Problem.from_dict(response.json())

        return response_413

    if response.status_code == 415:
        response_415 = Problem.from_dict(response.json())

        return response_415

    if response.status_code == 429:
        response_429 = Problem.from_dict(response.json())

        return response_429

    if response.status_code == 500:
        response_500 = Problem.from_dict(response.json())

        return response_500

    if client.raise_on_unexpected_status:
        raise errors.UnexpectedStatus(response.status_code, response.content)
    else:
        return None


def _build_response(
    *, client: AuthenticatedClient | Client, response: httpx.Response
) -> Response[DryRun | Task | Problem]:
    return Response(
        status_code=HTTPStatus(response.status_code),
        content=response.content,
        headers=response.headers,
        parsed=_parse_response(client=client, response=response),
    )


def sync_detailed(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    body: ExportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> Response[DryRun | Task | Problem]:
    """Export a VM or a snapshot

     A VM that runs is exported with the memory of one instant, for which it stands still as shortly
    as for a fork. With `since` only what changed since that export is in the archive. The task's
    result is an `Exported`.

    Args:
        vm (str):
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        body (ExportRequest): Write a VM, one of its snapshots or a fork point to an archive.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[DryRun | Task | Problem | Task]
    """

    kwargs = _get_kwargs(
        vm=vm,
        body=body,
        wait=wait,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
    )

    response = client.get_httpx_client().request(
        **kwargs,
    )

    return _build_response(client=client, response=response)


def sync(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    body: ExportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> DryRun | Task | Problem | None:
    """Export a VM or a snapshot

     A VM that runs is exported with the memory of one instant, for which it stands still as shortly
    as for a fork. With `since` only what changed since that export is in the archive. The task's
    result is an `Exported`.

    Args:
        vm (str):
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        body (ExportRequest): Write a VM, one of its snapshots or a fork point to an archive.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        DryRun | Task | Problem | Task
    """

    return sync_detailed(
        vm=vm,
        client=client,
        body=body,
        wait=wait,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
    ).parsed


async def asyncio_detailed(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    body: ExportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> Response[DryRun | Task | Problem]:
    """Export a VM or a snapshot

     A VM that runs is exported with the memory of one instant, for which it stands still as shortly
    as for a fork. With `since` only what changed since that export is in the archive. The task's
    result is an `Exported`.

    Args:
        vm (str):
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        body (ExportRequest): Write a VM, one of its snapshots or a fork point to an archive.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[DryRun | Task | Problem | Task]
    """

    kwargs = _get_kwargs(
        vm=vm,
        body=body,
        wait=wait,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
    )

    response = await client.get_async_httpx_client().request(**kwargs)

    return _build_response(client=client, response=response)


async def asyncio(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    body: ExportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> DryRun | Task | Problem | None:
    """Export a VM or a snapshot

     A VM that runs is exported with the memory of one instant, for which it stands still as shortly
    as for a fork. With `since` only what changed since that export is in the archive. The task's
    result is an `Exported`.

    Args:
        vm (str):
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        body (ExportRequest): Write a VM, one of its snapshots or a fork point to an archive.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        DryRun | Task | Problem | Task
    """

    return (
        await asyncio_detailed(
            vm=vm,
            client=client,
            body=body,
            wait=wait,
            dry_run=dry_run,
            idempotency_key=idempotency_key,
        )
    ).parsed
