from http import HTTPStatus
from typing import Any

import httpx

from ... import errors
from ...client import AuthenticatedClient, Client
from ...models.list_tasks_state import ListTasksState
from ...models.problem import Problem
from ...models.task import Task
from ...types import UNSET, Response, Unset


def _get_kwargs(
    *,
    state: ListTasksState | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    before: int | Unset = UNSET,
) -> dict[str, Any]:

    params: dict[str, Any] = {}

    json_state: str | Unset = UNSET
    if not isinstance(state, Unset):
        json_state = state.value

    params["state"] = json_state

    params["kind"] = kind

    params["object"] = object_

    params["limit"] = limit

    params["before"] = before

    params = {k: v for k, v in params.items() if v is not UNSET and v is not None}

    _kwargs: dict[str, Any] = {
        "method": "get",
        "url": "/api/v1/tasks",
        "params": params,
    }

    return _kwargs


def _parse_response(
    *, client: AuthenticatedClient | Client, response: httpx.Response
) -> Problem | list[Task] | None:
    if response.status_code == 200:
        response_200 = []
        _response_200 = response.json()
        for response_200_item_data in _response_200:
            response_200_item = Task.from_dict(response_200_item_data)

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
) -> Response[Problem | list[Task]]:
    return Response(
        status_code=HTTPStatus(response.status_code),
        content=response.content,
        headers=response.headers,
        parsed=_parse_response(client=client, response=response),
    )


def sync_detailed(
    *,
    client: AuthenticatedClient | Client,
    state: ListTasksState | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    before: int | Unset = UNSET,
) -> Response[Problem | list[Task]]:
    """Tasks

     Latest first. Where there are more, the header `Link` tells where the list goes on.

    Args:
        state (ListTasksState | Unset): State of a task or of one of its items.
        kind (str | Unset):
        object_ (str | Unset):
        limit (int | Unset):
        before (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Problem | list[Task]]
    """

    kwargs = _get_kwargs(
        state=state,
        kind=kind,
        object_=object_,
        limit=limit,
        before=before,
    )

    response = client.get_httpx_client().request(
        **kwargs,
    )

    return _build_response(client=client, response=response)


def sync(
    *,
    client: AuthenticatedClient | Client,
    state: ListTasksState | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    before: int | Unset = UNSET,
) -> Problem | list[Task] | None:
    """Tasks

     Latest first. Where there are more, the header `Link` tells where the list goes on.

    Args:
        state (ListTasksState | Unset): State of a task or of one of its items.
        kind (str | Unset):
        object_ (str | Unset):
        limit (int | Unset):
        before (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Problem | list[Task]
    """

    return sync_detailed(
        client=client,
        state=state,
        kind=kind,
        object_=object_,
        limit=limit,
        before=before,
    ).parsed


async def asyncio_detailed(
    *,
    client: AuthenticatedClient | Client,
    state: ListTasksState | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    before: int | Unset = UNSET,
) -> Response[Problem | list[Task]]:
    """Tasks

     Latest first. Where there are more, the header `Link` tells where the list goes on.

    Args:
        state (ListTasksState | Unset): State of a task or of one of its items.
        kind (str | Unset):
        object_ (str | Unset):
        limit (int | Unset):
        before (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Response[Problem | list[Task]]
    """

    kwargs = _get_kwargs(
        state=state,
        kind=kind,
        object_=object_,
        limit=limit,
        before=before,
    )

    response = await client.get_async_httpx_client().request(**kwargs)

    return _build_response(client=client, response=response)


async def asyncio(
    *,
    client: AuthenticatedClient | Client,
    state: ListTasksState | Unset = UNSET,
    kind: str | Unset = UNSET,
    object_: str | Unset = UNSET,
    limit: int | Unset = UNSET,
    before: int | Unset = UNSET,
) -> Problem | list[Task] | None:
    """Tasks

     Latest first. Where there are more, the header `Link` tells where the list goes on.

    Args:
        state (ListTasksState | Unset): State of a task or of one of its items.
        kind (str | Unset):
        object_ (str | Unset):
        limit (int | Unset):
        before (int | Unset):

    Raises:
        errors.UnexpectedStatus: If the server returns an undocumented status code and Client.raise_on_unexpected_status is True.
        httpx.TimeoutException: If the request takes longer than Client.timeout.

    Returns:
        Problem | list[Task]
    """

    return (
        await asyncio_detailed(
            client=client,
            state=state,
            kind=kind,
            object_=object_,
            limit=limit,
            before=before,
        )
    ).parsed
