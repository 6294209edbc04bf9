"""`POST /v1/completions`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from nalar.server.answer import random_seed
from nalar.server.ask import Usage
from nalar.server.http.failures import error_event, error_of
from nalar.server.http.job import Job
from nalar.server.http.openapi import json_body
from nalar.server.http.replies import DONE, EventStream, event, whole
from nalar.server.http.service import service_of
from nalar.server.http.unknown import note_unknown
from nalar.server.wire.completions import CompletionRequest, CompletionWriter

router = APIRouter()
PATH = "/v1/completions"


@router.post(PATH, openapi_extra=json_body(CompletionRequest))
async def completions(request: Request) -> Response:
    """How prompts of text or ids go on, whole or as a stream."""
    service = service_of(request)
    key = service.authenticated(request)
    asked = CompletionRequest.of(await service.body(request))
    note_unknown(request, asked)
    model = service.check_model(asked.model)
    text = service.dialect.tokenizer
    for prompt in asked.given:
        service.check_length(len(prompt), "prompt")
    asks = await asyncio.to_thread(asked.asks, service.config, random_seed(), text)
    job = await service.open_job(
        request, endpoint=PATH, model=model, key=key, asks=asks, id_prefix="cmpl-"
    )
    prompts = [ask.prompt_ids for ask in asks]
    writer = CompletionWriter(job.id, job.created, model, text, asked, prompts)
    if not asked.stream:
        return await whole(request, job, lambda job: _fold(job, writer))
    return EventStream(
        job,
        lambda job: _chunks(job, writer),
        keep_alive_s=service.config.keep_alive_s,
        error_of=error_of,
        on_error=error_event,
    )


async def _fold(job: Job, writer: CompletionWriter) -> dict[str, Any]:
    states, chunks = writer.states(), list[dict[str, Any]]()
    usage = None
    async with aclosing(job.said()) as all_said:
        async for said in all_said:
            if isinstance(said, Usage):
                usage = said
            else:
                chunks += states[said.choice].choices(said)
    assert usage is not None
    return writer.fold(chunks, usage)


async def _chunks(job: Job, writer: CompletionWriter) -> AsyncGenerator[bytes]:
    states = writer.states()
    async with aclosing(job.said()) as all_said:
        async for said in all_said:
            if not isinstance(said, Usage):
                for choice in states[said.choice].choices(said):
                    yield event(writer.document([choice], is_chunk=True))
                continue
            options = writer.asked.stream_options
            if options is not None and options.include_usage:
                yield event(writer.document([], said, is_chunk=True))
            yield DONE
