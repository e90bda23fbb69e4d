from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx

from ... import errors
from ...client import AuthenticatedClient, Client
from ...models.disk_pool_change_request import DiskPoolChangeRequest
from ...models.dry_run import DryRun
from ...models.problem import Problem
from ...models.task import Task
from ...types import UNSET, Response, Unset


def _get_kwargs(
    disk_pool: str,
    *,
    body: DiskPoolChangeRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
    if_match: str | Unset = UNSET,
) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if not isinstance(idempotency_key, Unset):
        headers["Idempotency-Key"] = idempotency_key

    if not isinstance(if_match, Unset):
        headers["If-Match"] = if_match

    params: dict[str, Any] = {}

    params["wait"] = wait

    params["dry_run"] = dry_run

    params = {k: v for k, v in params.items() if v is not UNSET and v is not None}

    _kwargs: dict[str, Any] = {
        "method": "patch",
        "url": "/api/v1/diskpools/{disk_pool}".format(
            disk_pool=quote(str(disk_pool), safe=""),
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

    if response.status_code == 412:
        response_412 = Problem.from_dict(response.json())

        return response_412

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
    disk_pool: str,
    *,
    client: AuthenticatedClient | Client,
    body: DiskPoolChangeRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
    if_match: str | Unset = UNSET,
) -> Response[DryRun | Task | Problem]:
    """Change a disk pool

     The number of its copies, or how fast they are made. The task's result is a `DiskPool`.

    Args:
        disk_pool (str):
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        if_match (str | Unset):
        body (DiskPoolChangeRequest): Change a disk pool: what is given.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[DryRun | Task | Problem | Task]
    """

    kwargs = _get_kwargs(
        disk_pool=disk_pool,
        body=body,
        wait=wait,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
        if_match=if_match,
    )

    response = client.get_httpx_client().request(
        **kwargs,
    )

    return _build_response(client=client, response=response)


def sync(
    disk_pool: str,
    *,
    client: AuthenticatedClient | Client,
    body: DiskPoolChangeRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
    if_match: str | Unset = UNSET,
) -> DryRun | Task | Problem | None:
    """Change a disk pool

     The number of its copies, or how fast they are made. The task's result is a `DiskPool`.

    Args:
        disk_pool (str):
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        if_match (str | Unset):
        body (DiskPoolChangeRequest): Change a disk pool: what is given.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        DryRun | Task | Problem | Task
    """

    return sync_detailed(
        disk_pool=disk_pool,
        client=client,
        body=body,
        wait=wait,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
        if_match=if_match,
    ).parsed


async def asyncio_detailed(
    disk_pool: str,
    *,
    client: AuthenticatedClient | Client,
    body: DiskPoolChangeRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
    if_match: str | Unset = UNSET,
) -> Response[DryRun | Task | Problem]:
    """Change a disk pool

     The number of its copies, or how fast they are made. The task's result is a `DiskPool`.

    Args:
        disk_pool (str):
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        if_match (str | Unset):
        body (DiskPoolChangeRequest): Change a disk pool: what is given.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[DryRun | Task | Problem | Task]
    """

    kwargs = _get_kwargs(
        disk_pool=disk_pool,
        body=body,
        wait=wait,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
        if_match=if_match,
    )

    response = await client.get_async_httpx_client().request(**kwargs)

    return _build_response(client=client, response=response)


async def asyncio(
    disk_pool: str,
    *,
    client: AuthenticatedClient | Client,
    body: DiskPoolChangeRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
    if_match: str | Unset = UNSET,
) -> DryRun | Task | Problem | None:
    """Change a disk pool

     The number of its copies, or how fast they are made. The task's result is a `DiskPool`.

    Args:
        disk_pool (str):
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        if_match (str | Unset):
        body (DiskPoolChangeRequest): Change a disk pool: what is given.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        DryRun | Task | Problem | Task
    """

    return (
        await asyncio_detailed(
            disk_pool=disk_pool,
            client=client,
            body=body,
            wait=wait,
            dry_run=dry_run,
            idempotency_key=idempotency_key,
            if_match=if_match,
        )
    ).parsed
