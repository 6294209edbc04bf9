"""`POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic's clients ask."""

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
from nalar.server.wire.messages import MessagesRequest, error_json
from nalar.server.wire.messages_out import MessageWriter

router = APIRouter()
PATH = "/v1/messages"


@router.post(PATH, openapi_extra=json_body(MessagesRequest))
async def messages(request: Request) -> Response:
    """The next message of a conversation, whole or as a stream."""
    service = service_of(request)
    key = service.authenticated(request)
    asked = MessagesRequest.of(await service.body(request))
    note_unknown(request, asked)
    model = service.check_model(asked.model)
    ask = asked.ask(service.config, random_seed())
    job = await service.open_job(
        request, endpoint=PATH, model=model, key=key, asks=[ask], id_prefix="msg_"
    )
    writer = MessageWriter(job.id, model, job.num_prompt)
    if not asked.stream:
        return await whole(request, job, lambda job: _fold(job, writer))
    return EventStream(
        job,
        lambda job: _chunks(job, writer),
        keep_alive_s=service.config.keep_alive_s,
        error_of=error_of,
        on_error=_error_event,
    )


@router.post(f"{PATH}/count_tokens", openapi_extra=json_body(MessagesRequest))
async def count_tokens(request: Request) -> dict[str, int]:
    """Tokens of what would be asked, as `input_tokens` of a reply to it counts them where nothing is cached."""
    service = service_of(request)
    service.authenticated(request)
    asked = MessagesRequest.of(await service.body(request))
    service.check_model(asked.model)
    ids = await service.prompt_ids(asked.ask(service.config, 0))
    return {"input_tokens": len(ids)}


async def _fold(job: Job, writer: MessageWriter) -> dict[str, Any]:
    async with aclosing(job.said()) as all_said:
        async for said in all_said:
            for _ in writer.events(said):
                pass
    return writer.message()


async def _chunks(job: Job, writer: MessageWriter) -> AsyncGenerator[bytes]:
    is_open = False
    async with aclosing(job.said()) as all_said:
        async for said in all_said:
            events = [] if is_open else list(writer.opening())
            is_open = True
            events += writer.events(said)
            if events:
                yield b"".join(event(one, one["type"]) for one in events)


def _error_event(error: Exception) -> bytes:
    assert isinstance(error, ApiError)
    return event(error_json(error), "error")
