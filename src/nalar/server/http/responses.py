"""`POST /v1/responses`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from nalar.server.answer import random_seed
from nalar.server.http.failures import error_of
from nalar.server.http.job import Job
from nalar.server.http.openapi import json_body
from nalar.server.http.replies import EventStream, event, whole
from nalar.server.http.service import service_of
from nalar.server.http.unknown import note_unknown
from nalar.server.wire.errors import ApiError
from nalar.server.wire.responses import ResponsesRequest
from nalar.server.wire.responses_out import Event, ResponseWriter

router = APIRouter()
PATH = "/v1/responses"


@router.post(PATH, openapi_extra=json_body(ResponsesRequest))
async def responses(request: Request) -> Response:
    """A reply as a list of items, whole or as a stream. Nothing of it is kept."""
    service = service_of(request)
    key = service.authenticated(request)
    asked = ResponsesRequest.of(await service.body(request))
    note_unknown(request, asked)
    model = service.check_model(asked.model)
    ask = asked.ask(service.config, random_seed())
    job = await service.open_job(
        request, endpoint=PATH, model=model, key=key, asks=[ask], id_prefix="resp_"
    )
    writer = ResponseWriter(job.id, job.created, model, service.dialect.tokenizer, asked)
    if not asked.stream:
        return await whole(request, job, lambda job: _fold(job, writer))

    def on_error(error: Exception) -> bytes:
        assert isinstance(error, ApiError)
        return _line(writer.failed(error))

    return EventStream(
        job,
        lambda job: _chunks(job, writer),
        keep_alive_s=service.config.keep_alive_s,
        error_of=error_of,
        on_error=on_error,
    )


async def _events(job: Job, writer: ResponseWriter) -> AsyncGenerator[list[Event]]:
    """Those of each thing that is said."""
    is_open = False
    async with aclosing(job.said()) as all_said:
        async for said in all_said:
            if not is_open:
                is_open = True
                yield list(writer.opening())
            yield list(writer.events(said))


async def _fold(job: Job, writer: ResponseWriter) -> dict[str, Any]:
    last: Event = {}
    async with aclosing(_events(job, writer)) as all_events:
        async for events in all_events:
            last = events[-1] if events else last
    response: dict[str, Any] = last["response"]
    return response


async def _chunks(job: Job, writer: ResponseWriter) -> AsyncGenerator[bytes]:
    async with aclosing(_events(job, writer)) as all_events:
        async for events in all_events:
            if events:
                yield b"".join(map(_line, events))


def _line(one: Event) -> bytes:
    return event(one, one["type"])
