"""What the endpoints that make a model speak have in common: a request is read, and a job becomes its reply."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request, Response

from nalar.server.http.failures import told
from nalar.server.http.job import Job
from nalar.server.http.replies import EventStream, event, whole
from nalar.server.http.service import Service, service_of
from nalar.server.http.unknown import note_unknown
from nalar.server.keys import Key
from nalar.server.wire.errors import ApiError
from nalar.server.wire.sampling import SamplingFields

T = TypeVar("T", bound=SamplingFields)


@dataclass(frozen=True)
class Asked(Generic[T]):
    """A request that was read, by somebody who may ask, of a model that is here."""

    service: Service
    key: Key | None
    body: T
    model: str
    """The name that a reply says."""


async def read(request: Request, form: type[T]) -> Asked[T]:
    """ApiError: 401, 408, 413, 400 for a body that is wrong, 404 for a model that is not here."""
    service = service_of(request)
    key = service.authenticated(request)
    body = form.of(await service.body(request))
    note_unknown(request, body)
    return Asked(service, key, body, service.check_model(body.model))


async def reply(
    request: Request,
    job: Job,
    *,
    stream: bool,
    fold: Callable[[Job], Awaitable[dict[str, Any]]],
    chunks: Callable[[Job], AsyncGenerator[bytes]],
    on_error: Callable[[ApiError], bytes] = lambda error: event(error.body),
) -> Response:
    """on_error: the last event of a stream that breaks: its status has long been 200."""
    if not stream:
        return await whole(request, job, fold)
    return EventStream(
        job,
        chunks,
        keep_alive_s=service_of(request).config.keep_alive_s,
        on_error=lambda error: on_error(told(error, request)),
    )
