from http import HTTPStatus
from typing import Any

import httpx

from ... import errors
from ...client import AuthenticatedClient, Client
from ...models.dry_run import DryRun
from ...models.import_request import ImportRequest
from ...models.problem import Problem
from ...models.task import Task
from ...types import UNSET, Response, Unset


def _get_kwargs(
    *,
    body: ImportRequest,
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
        "url": "/api/v1/import",
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
    *,
    client: AuthenticatedClient | Client,
    body: ImportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> Response[DryRun | Task | Problem]:
    """Import an archive

     The archive of a fork point becomes a fork point, others become VMs. Everything is verified before
    anything is visible. What an archive made with `since` leaves out is found on the host, or in the
    earlier archives that are given. With `replace` it takes the place of an earlier import of the same
    machine that nobody changed since. The task's result is an `Imported`.

    Args:
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        body (ImportRequest): Make a VM or a fork point of an archive.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[DryRun | Task | Problem | Task]
    """

    kwargs = _get_kwargs(
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
    *,
    client: AuthenticatedClient | Client,
    body: ImportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> DryRun | Task | Problem | None:
    """Import an archive

     The archive of a fork point becomes a fork point, others become VMs. Everything is verified before
    anything is visible. What an archive made with `since` leaves out is found on the host, or in the
    earlier archives that are given. With `replace` it takes the place of an earlier import of the same
    machine that nobody changed since. The task's result is an `Imported`.

    Args:
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        body (ImportRequest): Make a VM or a fork point of an archive.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        DryRun | Task | Problem | Task
    """

    return sync_detailed(
        client=client,
        body=body,
        wait=wait,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
    ).parsed


async def asyncio_detailed(
    *,
    client: AuthenticatedClient | Client,
    body: ImportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> Response[DryRun | Task | Problem]:
    """Import an archive

     The archive of a fork point becomes a fork point, others become VMs. Everything is verified before
    anything is visible. What an archive made with `since` leaves out is found on the host, or in the
    earlier archives that are given. With `replace` it takes the place of an earlier import of the same
    machine that nobody changed since. The task's result is an `Imported`.

    Args:
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        body (ImportRequest): Make a VM or a fork point of an archive.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[DryRun | Task | Problem | Task]
    """

    kwargs = _get_kwargs(
        body=body,
        wait=wait,
        dry_run=dry_run,
        idempotency_key=idempotency_key,
    )

    response = await client.get_async_httpx_client().request(**kwargs)

    return _build_response(client=client, response=response)


async def asyncio(
    *,
    client: AuthenticatedClient | Client,
    body: ImportRequest,
    wait: bool | Unset = UNSET,
    dry_run: bool | Unset = UNSET,
    idempotency_key: str | Unset = UNSET,
) -> DryRun | Task | Problem | None:
    """Import an archive

     The archive of a fork point becomes a fork point, others become VMs. Everything is verified before
    anything is visible. What an archive made with `since` leaves out is found on the host, or in the
    earlier archives that are given. With `replace` it takes the place of an earlier import of the same
    machine that nobody changed since. The task's result is an `Imported`.

    Args:
        wait (bool | Unset):
        dry_run (bool | Unset):
        idempotency_key (str | Unset):
        body (ImportRequest): Make a VM or a fork point of an archive.

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        DryRun | Task | Problem | Task
    """

    return (
        await asyncio_detailed(
            client=client,
            body=body,
            wait=wait,
            dry_run=dry_run,
            idempotency_key=idempotency_key,
        )
    ).parsed
