"""`POST /v1/chat/completions`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from nalar.server.answer import random_seed
from nalar.server.ask import Piece, Usage
from nalar.server.http.endpoint import read, reply
from nalar.server.http.job import Job
from nalar.server.http.openapi import json_body
from nalar.server.http.replies import DONE, PlainTexts, event
from nalar.server.wire.chat import ChatRequest, ChatWriter

router = APIRouter()
PATH = "/v1/chat/completions"


@router.post(PATH, openapi_extra=json_body(ChatRequest))
async def chat(request: Request) -> Response:
    """A reply to a conversation, whole or as a stream."""
    asked = await read(request, ChatRequest)
    service, body = asked.service, asked.body
    ask = body.ask(service.config, random_seed())
    job = await service.open_job(
        request, endpoint=PATH, model=asked.model, key=asked.key, asks=[ask]
    )
    writer = ChatWriter(
        job.id,
        job.created,
        asked.model,
        service.dialect.tokenizer,
        body,
        service.config.reasoning_key,
    )
    return await reply(
        request,
        job,
        stream=body.stream,
        fold=lambda job: _fold(job, writer),
        chunks=lambda job: _chunks(job, writer),
    )


async def _fold(job: Job, writer: ChatWriter) -> dict[str, Any]:
    choices: list[dict[str, Any]] = []
    usage = None
    async with aclosing(job.said()) as all_said:
        async for said in all_said:
            choices += writer.choices(said)
            if isinstance(said, Usage):
                usage = said
    assert usage is not None
    return writer.fold(choices, usage)


async def _chunks(job: Job, writer: ChatWriter) -> AsyncGenerator[bytes]:
    is_open = False
    plain_kinds = writer.plain_kinds
    plain = PlainTexts(lambda piece: writer.chunk(list(writer.choices(piece))))
    async with aclosing(job.said()) as all_said:
        async for said in all_said:
            if not is_open:
                is_open = True
                for choice in writer.opening():
                    yield event(writer.chunk([choice]))
            if isinstance(said, Piece) and said.kind in plain_kinds:
                yield plain.event(said)
                continue
            for choice in writer.choices(said):
                yield event(writer.chunk([choice]))
            if isinstance(said, Usage):
                options = writer.asked.stream_options
                if options is not None and options.include_usage:
                    yield event(writer.chunk([], said))
                yield DONE
