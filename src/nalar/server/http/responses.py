"""`POST /v1/responses`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from nalar.server.answer import random_seed
from nalar.server.http.endpoint import read, reply
from nalar.server.http.job import Job
from nalar.server.http.openapi import json_body
from nalar.server.http.replies import event
from nalar.server.wire.responses import ResponsesRequest
from nalar.server.wire.responses_out import Event, ResponseWriter

router = APIRouter()
PATH = "/v1/responses"


@router.post(PATH, openapi_extra=json_body(ResponsesRequest))
async def responses(request: Request) -> Response:
    """A reply as a list of items, whole or as a stream. Nothing of it is kept."""
    asked = await read(request, ResponsesRequest)
    service, body = asked.service, asked.body
    ask = body.ask(service.config, random_seed())
    job = await service.open_job(
        request,
        endpoint=PATH,
        model=asked.model,
        key=asked.key,
        asks=[ask],
        id_prefix="resp_",
    )
    writer = ResponseWriter(job.id, job.created, asked.model, service.dialect.tokenizer, body)
    return await reply(
        request,
        job,
        stream=body.stream,
        fold=lambda job: _fold(job, writer),
        chunks=lambda job: _chunks(job, writer),
        on_error=lambda error: _line(writer.failed(error)),
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
