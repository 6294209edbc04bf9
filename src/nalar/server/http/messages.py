"""`POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic's clients ask."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from nalar.server.answer import random_seed
from nalar.server.http.endpoint import read, reply
from nalar.server.http.job import Job
from nalar.server.http.openapi import json_body
from nalar.server.http.replies import event
from nalar.server.wire.errors import ApiError
from nalar.server.wire.messages import MessagesRequest, error_json
from nalar.server.wire.messages_out import MessageWriter

router = APIRouter()
PATH = "/v1/messages"


@router.post(PATH, openapi_extra=json_body(MessagesRequest))
async def messages(request: Request) -> Response:
    """The next message of a conversation, whole or as a stream."""
    asked = await read(request, MessagesRequest)
    service, body = asked.service, asked.body
    ask = body.ask(service.config, random_seed())
    job = await service.open_job(
        request,
        endpoint=PATH,
        model=asked.model,
        key=asked.key,
        asks=[ask],
        id_prefix="msg_",
    )
    writer = MessageWriter(job.id, asked.model, job.num_prompt)
    return await reply(
        request,
        job,
        stream=body.stream,
        fold=lambda job: _fold(job, writer),
        chunks=lambda job: _chunks(job, writer),
        on_error=_error_event,
    )


@router.post(f"{PATH}/count_tokens", openapi_extra=json_body(MessagesRequest))
async def count_tokens(request: Request) -> dict[str, int]:
    """Tokens of what would be asked, as `input_tokens` of a reply to it counts them where nothing is cached."""
    asked = await read(request, MessagesRequest)
    ids = await asked.service.prompt_ids(asked.body.ask(asked.service.config, 0))
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


def _error_event(error: ApiError) -> bytes:
    return event(error_json(error), "error")
