"""A client of any OpenAI-style chat API: questions go out side by side, replies or reasons why not come back.

httpx is imported where the first question is sent: configs that name an endpoint are read without it.
"""

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field

from nalar.config import Config, ConfigError

if TYPE_CHECKING:
    import httpx

MAX_REPLY_BYTES = 4_000_000
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Pauses between tries double from the one to the other, which also bounds what a server may ask for."""
_BUSY = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({400, 413, 422})
"""How servers say that they will not take what a request holds."""

Message = Mapping[str, str]
"""`role` and `content`."""


class EndpointConfig(Config):
    """Where a chat API is, and how patiently it is asked."""

    base_url: str
    """What stands before `/chat/completions`, such as `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    api_key_env: str | None = None
    """Name of the environment variable that holds the key: the key itself stands in no file. None: no key is sent."""
    timeout_s: float = Field(default=60.0, gt=0, le=3600)
    """Of one try, from the first byte sent to the last one read."""
    max_retries: int = Field(default=3, ge=0, le=20)
    """After the first try: where the server is busy (429) or broken (5xx), where it is out of reach or out of time."""
    max_concurrency: int = Field(default=8, ge=1, le=1024)
    """Questions under way at once."""

    def model_post_init(self, _context: object) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigError(
                at="endpoint.base_url",
                got=repr(self.base_url),
                want="an address such as http://127.0.0.1:8000/v1",
            )
        if parts.username or parts.password:
            raise ConfigError(
                at="endpoint.base_url",
                got="an address with a name or a password in it",
                want="no secret in a config",
                hint="api_key_env names the environment variable that holds the key",
            )


@dataclass(frozen=True)
class Reply:
    """What came back. `error` is set where nothing did that can be read: the text is empty then."""

    text: str = ""
    finish_reason: str | None = None
    """`length` where the cap on tokens cut it."""
    prompt_tokens: int = 0
    """As the server counts, 0 where it does not say."""
    completion_tokens: int = 0
    error: str | None = None
    timed_out: bool = False
    refused: bool = False
    """Whether the server would not take this request for what stands in it, such as more than it can read."""
    tries: int = 1


class Endpoint:
    """One model behind one address. Holds no connection between calls, and may be used by several threads."""

    def __init__(self, config: EndpointConfig) -> None:
        """ConfigError where the environment lacks the key that the config names, or has one that no header can hold."""
        self.config = config
        self._key = os.environ.get(config.api_key_env) if config.api_key_env else None
        if config.api_key_env and not self._key:
            raise ConfigError(
                at="endpoint.api_key_env",
                got=f"{config.api_key_env}, which is not set",
                want="an environment variable that holds the key",
            )
        if self._key and not re.fullmatch("[!-~]+", self._key):
            raise ConfigError(
                at="endpoint.api_key_env",
                got=f"{config.api_key_env}, which holds a space, a line end or a sign beyond ASCII",
                want="the key and nothing else",
            )

    def ask(self, messages: Sequence[Message], **params: Any) -> Reply:
        """One question. params: other fields of the request, such as max_tokens and temperature."""
        return self.ask_all([messages], **params)[0]

    def ask_all(self, conversations: Sequence[Sequence[Message]], **params: Any) -> list[Reply]:
        """A reply to each conversation, in their order, at most `max_concurrency` of them under way at once.

        Never raises for what the server does, and takes no longer than tries, timeouts and pauses add up to.
        """
        if not conversations:
            return []
        bodies = [self._body(messages, params) for messages in conversations]
        return asyncio.run(self._all(bodies))

    async def reply(self, messages: Sequence[Message], **params: Any) -> Reply:
        """As `ask`, in an event loop that others use too. How many are under way at once is the caller's to bound."""
        (reply,) = await self._all([self._body(messages, params)])
        return reply

    def _body(self, messages: Sequence[Message], params: Mapping[str, Any]) -> bytes:
        # In ASCII: half a surrogate pair, which a model may write, is no UTF-8.
        asked = {"model": self.config.model, "messages": [dict(m) for m in messages], **params}
        return json.dumps(asked).encode("ascii")

    async def _all(self, bodies: Sequence[bytes]) -> list[Reply]:
        import httpx

        # Uncompressed: a few bytes could be gigabytes.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx.Limits(max_connections=self.config.max_concurrency)
        # Redirects are not followed: the key would go where the config does not say.
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=None) as client:
            turns = asyncio.Semaphore(self.config.max_concurrency)
            return await asyncio.gather(*(self._one(client, turns, body) for body in bodies))

    async def _one(
        self, client: "httpx.AsyncClient", turns: asyncio.Semaphore, body: bytes
    ) -> Reply:
        """Tries until one is answered or they are used up; the reason why the last one was not."""
        async with turns:
            for tried in range(1, self.config.max_retries + 2):
                answer = await self._try(client, body)
                if answer.pause_s is None:
                    break
                if tried <= self.config.max_retries:
                    usual = FIRST_PAUSE_S * 2 ** (tried - 1)
                    await asyncio.sleep(min(max(usual, answer.pause_s), LONGEST_PAUSE_S))
        if answer.error is not None:
            return Reply(
                error=answer.error,
                timed_out=answer.timed_out,
                refused=answer.refused,
                tries=tried,
            )
        return _reply(answer.body, tries=tried)

    async def _try(self, client: "httpx.AsyncClient", body: bytes) -> "_Answer":
        import httpx

        url = self.config.base_url.rstrip("/") + "/chat/completions"
        try:
            async with asyncio.timeout(self.config.timeout_s):
                async with client.stream("POST", url, content=body) as response:
                    read = b""
                    async for chunk in response.aiter_raw():
                        read += chunk
                        if len(read) > MAX_REPLY_BYTES:
                            return _Answer(error=f"more than {MAX_REPLY_BYTES} bytes")
        except TimeoutError:
            return _Answer(
                error=f"no reply within {self.config.timeout_s:g} s", timed_out=True, pause_s=0
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return _Answer(error=f"{type(error).__name__}: {error}"[:200], pause_s=0)
        if (
            self._key
        ):  # some servers repeat the key that they refuse, and what they say is kept and shown
            read = read.replace(self._key.encode(), b"[the key]")
        if response.status_code == 200:
            return _Answer(body=read)
        told = read[:200].decode("utf-8", "replace").replace("\n", " ")
        is_worth_another = response.status_code in _BUSY or response.status_code >= 500
        pause_s = asked_pause_s(response.headers.get("retry-after")) if is_worth_another else None
        return _Answer(
            error=f"status {response.status_code}: {told}",
            refused=response.status_code in _REFUSED,
            pause_s=pause_s,
        )


@dataclass(frozen=True)
class _Answer:
    """Of one try. pause_s: before another one, at least; None: there is no point in another."""

    body: bytes = b""
    error: str | None = None
    timed_out: bool = False
    refused: bool = False
    pause_s: float | None = None


def asked_pause_s(header: str | None) -> float:
    """Seconds of a `Retry-After`; 0 where there is none, or a date."""
    return float(header) if header and header.isascii() and header.isdigit() else 0.0


def _reply(body: bytes, *, tries: int) -> Reply:
    """The text of the first choice; an error where the body is not of the form that the API has."""
    try:
        read = json.loads(body)
        choice = read["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        usage = read.get("usage") or {}
        counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        text = None
    if not isinstance(text, str) or not all(type(count) is int for count in counts):
        told = body[:200].decode("utf-8", "replace")
        return Reply(error=f"no chat completion: {told!r}", tries=tries)
    reason = reason if isinstance(reason, str) else None
    return Reply(text, reason, counts[0], counts[1], tries=tries)
