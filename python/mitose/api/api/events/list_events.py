from http import HTTPStatus
from typing import Any

import httpx

from ... import errors
from ...client import AuthenticatedClient, Client
from ...models.event import Event
from ...models.problem import Problem
from ...types import UNSET, Response, Unset


def _get_kwargs(
    *,
    after: int | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    last_event_id: int | Unset = UNSET,
) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if not isinstance(last_event_id, Unset):
        headers["Last-Event-ID"] = str(last_event_id)

    params: dict[str, Any] = {}

    params["after"] = after

    params["kind"] = kind

    params["object"] = object_

    params["limit"] = limit

    params = {k: v for k, v in params.items() if v is not UNSET and v is not None}

    _kwargs: dict[str, Any] = {
        "method": "get",
        "url": "/api/v1/events",
        "params": params,
    }

    _kwargs["headers"] = headers
    return _kwargs


def _parse_response(
    *, client: AuthenticatedClient | Client, response: httpx.Response
) -> Problem | list[Event] | None:
    if response.status_code == 200:
        response_200 = []
        _response_200 = response.json()
        for response_200_item_data in _response_200:
            response_200_item = Event.from_dict(response_200_item_data)

            response_200.append(response_200_item)

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
) -> Response[Problem | list[Event]]:
    return Response(
        status_code=HTTPStatus(response.status_code),
        content=response.content,
        headers=response.headers,
        parsed=_parse_response(client=client, response=response),
    )


def sync_detailed(
    *,
    client: AuthenticatedClient | Client,
    after: int | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    last_event_id: int | Unset = UNSET,
) -> Response[Problem | list[Event]]:
    """Events

     A list, or server-sent events that go on where the client accepts `text/event-stream`.

    Args:
        after (int | Unset):
        kind (str | Unset):
        object_ (str | Unset):
        limit (int | Unset):
        last_event_id (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Problem | list[Event]]
    """

    kwargs = _get_kwargs(
        after=after,
        kind=kind,
        object_=object_,
        limit=limit,
        last_event_id=last_event_id,
    )

    response = client.get_httpx_client().request(
        **kwargs,
    )

    return _build_response(client=client, response=response)


def sync(
    *,
    client: AuthenticatedClient | Client,
    after: int | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    last_event_id: int | Unset = UNSET,
) -> Problem | list[Event] | None:
    """Events

     A list, or server-sent events that go on where the client accepts `text/event-stream`.

    Args:
        after (int | Unset):
        kind (str | Unset):
        object_ (str | Unset):
        limit (int | Unset):
        last_event_id (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Problem | list[Event]
    """

    return sync_detailed(
        client=client,
        after=after,
        kind=kind,
        object_=object_,
        limit=limit,
        last_event_id=last_event_id,
    ).parsed


async def asyncio_detailed(
    *,
    client: AuthenticatedClient | Client,
    after: int | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    last_event_id: int | Unset = UNSET,
) -> Response[Problem | list[Event]]:
    """Events

     A list, or server-sent events that go on where the client accepts `text/event-stream`.

    Args:
        after (int | Unset):
        kind (str | Unset):
        object_ (str | Unset):
        limit (int | Unset):
        last_event_id (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Problem | list[Event]]
    """

    kwargs = _get_kwargs(
        after=after,
        kind=kind,
        object_=object_,
        limit=limit,
        last_event_id=last_event_id,
    )

    response = await client.get_async_httpx_client().request(**kwargs)

    return _build_response(client=client, response=response)


async def asyncio(
    *,
    client: AuthenticatedClient | Client,
    after: int | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    last_event_id: int | Unset = UNSET,
) -> Problem | list[Event] | None:
    """Events

     A list, or server-sent events that go on where the client accepts `text/event-stream`.

    Args:
        after (int | Unset):
        kind (str | Unset):
        object_ (str | Unset):
        limit (int | Unset):
        last_event_id (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Problem | list[Event]
    """

    return (
        await asyncio_detailed(
            client=client,
            after=after,
            kind=kind,
            object_=object_,
            limit=limit,
            last_event_id=last_event_id,
        )
    ).parsed
