from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx

from ... import errors
from ...client import AuthenticatedClient, Client
from ...models.datastore import Datastore
from ...models.problem import Problem
from ...types import Response


def _get_kwargs(
    datastore: str,
) -> dict[str, Any]:

    _kwargs: dict[str, Any] = {
        "method": "get",
        "url": "/api/v1/datastores/{datastore}".format(
            datastore=quote(str(datastore), safe=""),
        ),
    }

    return _kwargs


def _parse_response(
    *, client: AuthenticatedClient | Client, response: httpx.Response
) -> Datastore | Problem | None:
    if response.status_code == 200:
        response_200 = Datastore.from_dict(response.json())

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
) -> Response[Datastore | Problem]:
    return Response(
        status_code=HTTPStatus(response.status_code),
        content=response.content,
        headers=response.headers,
        parsed=_parse_response(client=client, response=response),
    )


def sync_detailed(
    datastore: str,
    *,
    client: AuthenticatedClient | Client,
) -> Response[Datastore | Problem]:
    """One datastore

    Args:
        datastore (str):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Datastore | Problem]
    """

    kwargs = _get_kwargs(
        datastore=datastore,
    )

    response = client.get_httpx_client().request(
        **kwargs,
    )

    return _build_response(client=client, response=response)


def sync(
    datastore: str,
    *,
    client: AuthenticatedClient | Client,
) -> Datastore | Problem | None:
    """One datastore

    Args:
        datastore (str):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Datastore | Problem
    """

    return sync_detailed(
        datastore=datastore,
        client=client,
    ).parsed


async def asyncio_detailed(
    datastore: str,
    *,
    client: AuthenticatedClient | Client,
) -> Response[Datastore | Problem]:
    """One datastore

    Args:
        datastore (str):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Datastore | Problem]
    """

    kwargs = _get_kwargs(
        datastore=datastore,
    )

    response = await client.get_async_httpx_client().request(**kwargs)

    return _build_response(client=client, response=response)


async def asyncio(
    datastore: str,
    *,
    client: AuthenticatedClient | Client,
) -> Datastore | Problem | None:
    """One datastore

    Args:
        datastore (str):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Datastore | Problem
    """

    return (
        await asyncio_detailed(
            datastore=datastore,
            client=client,
        )
    ).parsed
