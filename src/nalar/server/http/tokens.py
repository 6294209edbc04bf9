"""`/tokenize`, `/detokenize` and `/tokenizer_info`: how this model counts, as clients of vLLM and lm-eval ask it."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from nalar.server.ask import Ask, ToolSpec
from nalar.server.http.openapi import json_body
from nalar.server.http.service import service_of
from nalar.server.http.unknown import note_unknown
from nalar.server.wire.body import Wire
from nalar.server.wire.chat import WireTool, tools_of
from nalar.server.wire.errors import bad_request
from nalar.server.wire.messages_in import WireMessage, messages_of
from nalar.server.wire.thinking import ThinkingFields

router = APIRouter()


class TokenizeRequest(ThinkingFields):
    """Either a prompt, or messages as the model would be asked."""

    model: str | None = None
    prompt: str | None = None
    messages: list[WireMessage] | None = None
    tools: list[WireTool] = Field(default_factory=list)
    add_special_tokens: bool = False
    """Taken and not followed: texts have no special tokens here."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(Wire):
    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=2**22)]


@router.post("/tokenize", openapi_extra=json_body(TokenizeRequest))
async def tokenize(request: Request) -> dict[str, Any]:
    service = service_of(request)
    service.authenticated(request)
    asked = TokenizeRequest.of(await service.body(request))
    note_unknown(request, asked)
    service.check_model(asked.model)
    tokenizer = service.dialect.tokenizer
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_request("prompt: wanted either prompt or messages", "prompt")
    if asked.prompt is not None:
        service.check_length(len(asked.prompt), "prompt")
        ids = await asyncio.to_thread(tokenizer.encode, asked.prompt)
    else:
        specs = (tool.function for tool in asked.tools)
        ask = Ask(
            messages_of(asked.messages or []),
            tools=tools_of(ToolSpec(f.name, f.description, f.parameters, f.strict) for f in specs),
            thinking=asked.thinking_asked(service.config),
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            template_kwargs=asked.template_kwargs,
        )
        ids = list(await service.prompt_ids(ask))
    reply: dict[str, Any] = {
        "tokens": ids,
        "count": len(ids),
        "max_model_len": service.max_model_len,
    }
    if asked.return_token_strs:
        reply["token_strs"] = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
    return reply


@router.post("/detokenize", openapi_extra=json_body(DetokenizeRequest))
async def detokenize(request: Request) -> dict[str, str]:
    service = service_of(request)
    service.authenticated(request)
    asked = DetokenizeRequest.of(await service.body(request))
    note_unknown(request, asked)
    service.check_model(asked.model)
    service.check_length(len(asked.tokens), "tokens")
    tokenizer = service.dialect.tokenizer
    if max(asked.tokens, default=0) >= tokenizer.vocab_size:
        raise bad_request(f"tokens: wanted ids below {tokenizer.vocab_size}", "tokens")
    return {"prompt": await asyncio.to_thread(tokenizer.decode, asked.tokens)}


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """As tokenizer_config.json has it, so that a client need not have the folder."""
    service = service_of(request)
    service.authenticated(request)
    folder, tokenizer = service.folder, service.dialect.tokenizer
    known = dict(folder.tokenizer_config)
    for name in ("eos_token", "bos_token", "pad_token"):
        entry = known.get(name)
        if isinstance(entry, dict):
            known[name] = entry.get("content")
    known.setdefault(
        "eos_token", tokenizer.token_bytes(tokenizer.end_id).decode("utf-8", "replace")
    )
    known["vocab_size"] = tokenizer.vocab_size
    if folder.chat_template is not None:
        known["chat_template"] = folder.chat_template.text
    return known
