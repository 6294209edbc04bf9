"""`POST /v1/completions`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from nalar.server.answer import random_seed
from nalar.server.ask import Usage
from nalar.server.http.endpoint import read, reply
from nalar.server.http.job import Job
from nalar.server.http.openapi import json_body
from nalar.server.http.replies import DONE, event
from nalar.server.wire.completions import CompletionRequest, CompletionWriter

router = APIRouter()
PATH = "/v1/completions"


@router.post(PATH, openapi_extra=json_body(CompletionRequest))
async def completions(request: Request) -> Response:
    """How prompts of text or ids go on, whole or as a stream."""
    asked = await read(request, CompletionRequest)
    service, body = asked.service, asked.body
    text = service.dialect.tokenizer
    for prompt in body.given:
        service.check_length(len(prompt), "prompt")
    asks = await asyncio.to_thread(body.asks, service.config, random_seed(), text)
    job = await service.open_job(
        request,
        endpoint=PATH,
        model=asked.model,
        key=asked.key,
        asks=asks,
        id_prefix="cmpl-",
    )
    prompts = [ask.prompt_ids for ask in asks]
    writer = CompletionWriter(job.id, job.created, asked.model, text, body, prompts)
    return await reply(
        request,
        job,
        stream=body.stream,
        fold=lambda job: _fold(job, writer),
        chunks=lambda job: _chunks(job, writer),
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
