from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote

import httpx

from ... import errors
from ...client import AuthenticatedClient, Client
from ...models.problem import Problem
from ...types import UNSET, Response, Unset


def _get_kwargs(
    vm: str,
    *,
    tail_bytes: int | Unset = UNSET,
    process: bool | Unset = UNSET,
) -> dict[str, Any]:

    params: dict[str, Any] = {}

    params["tail_bytes"] = tail_bytes

    params["process"] = process

    params = {k: v for k, v in params.items() if v is not UNSET and v is not None}

    _kwargs: dict[str, Any] = {
        "method": "get",
        "url": "/api/v1/vms/{vm}/log".format(
            vm=quote(str(vm), safe=""),
        ),
        "params": params,
    }

    return _kwargs


def _parse_response(
    *, client: AuthenticatedClient | Client, response: httpx.Response
) -> Problem | list[int] | None:
    if response.status_code == 200:
        response_200 = cast(list[int], response.content)

        return response_200

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
) -> Response[Problem | list[int]]:
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
    tail_bytes: int | Unset = UNSET,
    process: bool | Unset = UNSET,
) -> Response[Problem | list[int]]:
    """Log of a VM

     What its serial port or its process has written so far.

    Args:
        vm (str):
        tail_bytes (int | Unset):
        process (bool | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Problem | list[int]]
    """

    kwargs = _get_kwargs(
        vm=vm,
        tail_bytes=tail_bytes,
        process=process,
    )

    response = client.get_httpx_client().request(
        **kwargs,
    )

    return _build_response(client=client, response=response)


def sync(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    tail_bytes: int | Unset = UNSET,
    process: bool | Unset = UNSET,
) -> Problem | list[int] | None:
    """Log of a VM

     What its serial port or its process has written so far.

    Args:
        vm (str):
        tail_bytes (int | Unset):
        process (bool | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Problem | list[int]
    """

    return sync_detailed(
        vm=vm,
        client=client,
        tail_bytes=tail_bytes,
        process=process,
    ).parsed


async def asyncio_detailed(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    tail_bytes: int | Unset = UNSET,
    process: bool | Unset = UNSET,
) -> Response[Problem | list[int]]:
    """Log of a VM

     What its serial port or its process has written so far.

    Args:
        vm (str):
        tail_bytes (int | Unset):
        process (bool | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Problem | list[int]]
    """

    kwargs = _get_kwargs(
        vm=vm,
        tail_bytes=tail_bytes,
        process=process,
    )

    response = await client.get_async_httpx_client().request(**kwargs)

    return _build_response(client=client, response=response)


async def asyncio(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    tail_bytes: int | Unset = UNSET,
    process: bool | Unset = UNSET,
) -> Problem | list[int] | None:
    """Log of a VM

     What its serial port or its process has written so far.

    Args:
        vm (str):
        tail_bytes (int | Unset):
        process (bool | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Problem | list[int]
    """

    return (
        await asyncio_detailed(
            vm=vm,
            client=client,
            tail_bytes=tail_bytes,
            process=process,
        )
    ).parsed
