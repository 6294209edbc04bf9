"""A model behind any OpenAI-style chat API, streamed. What a server sends is data: bounded, and checked for its form.

httpx is imported where the first question is sent.
"""

import contextlib
import functools
import json
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nalar.agent.events import Folded, events, read_error
from nalar.agent.speech import Asked, Message, Piece, Turn
from nalar.config import UserError
from nalar.endpoint import FIRST_PAUSE_S, LONGEST_PAUSE_S, EndpointConfig, asked_pause_s
from nalar.sandbox.tools import Tool

if TYPE_CHECKING:
    import ssl

    import httpx

MAX_BODY_BYTES = 1_000_000
"""Of a reply that is no stream."""
_AGAIN = frozenset({429, 502, 503, 504})
"""Statuses behind which the same question is asked again: the server was busy, and has done nothing."""


class ChatApi:
    """Speaks OpenAI's chat completions, as our own server and most others do."""

    def __init__(self, config: EndpointConfig, key: str | None = None) -> None:
        """ConfigError where no header can hold the key."""
        if key and not re.fullmatch("[!-~]+", key):
            raise UserError(
                at="--api-key",
                got="a key with a space, a line end or a sign beyond ASCII",
                want="the key and nothing else",
            )
        self.config, self._key = config, key
        self._url = config.base_url.rstrip("/")

    def models(self) -> list[str]:
        """What the server serves, by name."""
        with (
            self._reached(),
            self._client() as client,
            client.stream("GET", f"{self._url}/models") as response,
        ):
            read = _bounded(response)
        if response.status_code != 200:
            raise self._refusal(response.status_code, read)
        try:
            names = [one["id"] for one in json.loads(read)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                at=self._url, got="no list of models", want="an OpenAI-style API"
            ) from error
        return [name for name in names if isinstance(name, str)]

    def say(self, messages: Sequence[Message], asked: Asked) -> Iterator[Piece | Turn]:
        """One turn. Asked again where the server is busy, never once something has come."""
        body = json.dumps(self._body(messages, asked)).encode("ascii")
        for tried in range(self.config.max_retries + 1):
            folded = Folded()
            with self._reached():
                pause_s = yield from self._try(body, folded)
            if pause_s is None:
                yield folded.turn()
                return
            if tried < self.config.max_retries:
                time.sleep(min(max(FIRST_PAUSE_S * 2**tried, pause_s), LONGEST_PAUSE_S))
        raise UserError(
            at=self._url,
            got=f"a server that is busy after {self.config.max_retries + 1} tries",
            want="one that takes the question",
            hint="ask again later",
        )

    def _body(self, messages: Sequence[Message], asked: Asked) -> dict[str, Any]:
        """Only what was asked for: what is left out is as the server has it."""
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [dict(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for name in ("temperature", "max_tokens", "seed"):
            if getattr(asked, name) is not None:
                body[name] = getattr(asked, name)
        if asked.thinking is not None:  # both names: templates differ
            switch = {"enable_thinking": asked.thinking, "thinking": asked.thinking}
            body["chat_template_kwargs"] = switch
        if asked.thinking_budget is not None:
            body["thinking_token_budget"] = asked.thinking_budget
        if asked.tools:
            body["tools"] = _specs(asked.tools)
        return body

    def _try(self, body: bytes, folded: Folded) -> Generator[Piece, None, float | None]:
        """Pieces; returns the seconds to wait before the next try, None where this one was answered."""
        with (
            self._client() as client,
            client.stream("POST", f"{self._url}/chat/completions", content=body) as response,
        ):
            if response.status_code != 200:
                read = _bounded(response)
                if response.status_code in _AGAIN:
                    return asked_pause_s(response.headers.get("retry-after"))
                raise self._refusal(response.status_code, read)
            for event in events(response.iter_bytes()):
                if "error" in event:
                    raise self._refusal(200, json.dumps(event).encode())
                yield from folded.take(event)
        if not folded.is_ended:
            raise UserError(
                at=self._url,
                got="a reply that breaks off" if folded.has_begun else "no chat completion",
                want="a stream that says how it ended",
                hint="/retry asks again",
            )
        return None

    def _client(self) -> "httpx.Client":
        import httpx

        # Uncompressed: a few bytes could be gigabytes. Redirects are not followed: the key would go with them.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return httpx.Client(headers=headers, timeout=self.config.timeout_s, verify=_trusted())

    def _refusal(self, status: int, body: bytes) -> UserError:
        """What the server said, in our form; the key that some repeat is left out."""
        if self._key:
            body = body.replace(self._key.encode(), b"[the key]")
        message, code = read_error(body)
        at = f"{self._url}: status {status}" if status != 200 else self._url
        if code == "context_length_exceeded" or "maximum context length" in message:
            return UserError(
                at="the model's context",
                got=message,
                want="a conversation that the model can read whole, with room for its reply",
                hint="/new begins another; a smaller /max_tokens leaves more room",
            )
        hints = {
            401: "--api-key, or NALAR_API_KEY",
            402: "the key's budget is used up",
            404: "--url with its /v1, and a model that the server names at /models",
        }
        return UserError(
            at=at, got=message, want="a request that the server takes", hint=hints.get(status)
        )

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """UserError where the server cannot be reached, or is lost on the way."""
        import httpx

        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise UserError(
                at=self._url,
                got=f"{type(error).__name__}: {error}"[:200],
                want="a server that answers",
                hint="nalar serve MODEL starts one",
            ) from error


@functools.cache
def _trusted() -> "ssl.SSLContext":
    """The authorities whom httpx trusts; to load them takes 0.1 s, and every question has a client of its own."""
    import httpx

    return httpx.create_ssl_context()


def _specs(tools: Mapping[str, Tool]) -> list[dict[str, Any]]:
    """OpenAI's `tools` of a request."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(tool.parameters),
            },
        }
        for tool in tools.values()
    ]


def _bounded(response: "httpx.Response") -> bytes:
    read = b""
    for chunk in response.iter_bytes():
        read += chunk
        if len(read) > MAX_BODY_BYTES:
            break
    return read[:MAX_BODY_BYTES]
