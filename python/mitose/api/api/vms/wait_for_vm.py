from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx

from ... import errors
from ...client import AuthenticatedClient, Client
from ...models.problem import Problem
from ...models.vm import Vm
from ...models.wait_for_vm_for import WaitForVmFor
from ...types import UNSET, Response, Unset


def _get_kwargs(
    vm: str,
    *,
    for_: WaitForVmFor,
    timeout_s: int | Unset = UNSET,
) -> dict[str, Any]:

    params: dict[str, Any] = {}

    json_for_ = for_.value
    params["for"] = json_for_

    params["timeout_s"] = timeout_s

    params = {k: v for k, v in params.items() if v is not UNSET and v is not None}

    _kwargs: dict[str, Any] = {
        "method": "get",
        "url": "/api/v1/vms/{vm}/wait".format(
            vm=quote(str(vm), safe=""),
        ),
        "params": params,
    }

    return _kwargs


def _parse_response(
    *, client: AuthenticatedClient | Client, response: httpx.Response
) -> Problem | Vm | None:
    if response.status_code == 200:
        response_200 = Vm.from_dict(response.json())

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
) -> Response[Problem | Vm]:
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
    for_: WaitForVmFor,
    timeout_s: int | Unset = UNSET,
) -> Response[Problem | Vm]:
    """Wait until a VM is frozen, ready, running or off

     Answers with a problem of the kind `timeout` when it is not after the wait.

    Args:
        vm (str):
        for_ (WaitForVmFor): What to wait for.
        timeout_s (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Problem | Vm]
    """

    kwargs = _get_kwargs(
        vm=vm,
        for_=for_,
        timeout_s=timeout_s,
    )

    response = client.get_httpx_client().request(
        **kwargs,
    )

    return _build_response(client=client, response=response)


def sync(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    for_: WaitForVmFor,
    timeout_s: int | Unset = UNSET,
) -> Problem | Vm | None:
    """Wait until a VM is frozen, ready, running or off

     Answers with a problem of the kind `timeout` when it is not after the wait.

    Args:
        vm (str):
        for_ (WaitForVmFor): What to wait for.
        timeout_s (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Problem | Vm
    """

    return sync_detailed(
        vm=vm,
        client=client,
        for_=for_,
        timeout_s=timeout_s,
    ).parsed


async def asyncio_detailed(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    for_: WaitForVmFor,
    timeout_s: int | Unset = UNSET,
) -> Response[Problem | Vm]:
    """Wait until a VM is frozen, ready, running or off

     Answers with a problem of the kind `timeout` when it is not after the wait.

    Args:
        vm (str):
        for_ (WaitForVmFor): What to wait for.
        timeout_s (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Problem | Vm]
    """

    kwargs = _get_kwargs(
        vm=vm,
        for_=for_,
        timeout_s=timeout_s,
    )

    response = await client.get_async_httpx_client().request(**kwargs)

    return _build_response(client=client, response=response)


async def asyncio(
    vm: str,
    *,
    client: AuthenticatedClient | Client,
    for_: WaitForVmFor,
    timeout_s: int | Unset = UNSET,
) -> Problem | Vm | None:
    """Wait until a VM is frozen, ready, running or off

     Answers with a problem of the kind `timeout` when it is not after the wait.

    Args:
        vm (str):
        for_ (WaitForVmFor): What to wait for.
        timeout_s (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Problem | Vm
    """

    return (
        await asyncio_detailed(
            vm=vm,
            client=client,
            for_=for_,
            timeout_s=timeout_s,
        )
    ).parsed
