"""What all endpoints of one server share: who may ask, what is asked of the engine, where it is counted."""

import asyncio
import hmac
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect

from nalar.config import UserError
from nalar.model.folder import ModelFolder
from nalar.policy import Policy
from nalar.server.answer import ContextTooLong, Prepared, prepare, prompt_of
from nalar.server.ask import Ask
from nalar.server.budgets import Budgets
from nalar.server.config import ServerConfig
from nalar.server.dialects.dialect import Dialect
from nalar.server.dialects.own import OwnWriter
from nalar.server.engine.link import Engine
from nalar.server.http.job import Job
from nalar.server.http.replies import until_gone
from nalar.server.http.reviewed import asked_text
from nalar.server.keys import Key, KeyRing, OneKey, digest_of
from nalar.server.ledger import Ledger, Row
from nalar.server.ledger_writer import LedgerWriter
from nalar.server.limits import NOBODY, Admission, Limits, Refusal
from nalar.server.metrics import Metrics
from nalar.server.prices_config import PriceTable
from nalar.server.wire.body import read_object
from nalar.server.wire.errors import ApiError, bad_request, of_user_error

T = TypeVar("T")
_log = logging.getLogger(__name__)
_COUNTING_S = 10.0
"""What requests that were broken off get to be counted in."""
_LONG_BODY_BYTES = 20_000
"""Of JSON: from here on it is read beside the loop."""
_LONG_CHARS = 4_000
_MANY_MESSAGES = 50
"""Of a prompt: from here on it is encoded beside the loop, which others wait for. Either takes some 8 ms of it; 20,000
characters in 1,900 messages took 90 to 170 ms, by the family's template."""


@dataclass(eq=False)
class Service:
    config: ServerConfig
    folder: ModelFolder
    dialect: Dialect
    engine: Engine
    limits: Limits
    metrics: Metrics
    writer: LedgerWriter | None
    keys: KeyRing | OneKey | None
    admin_sha256: str | None
    policy: Policy | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    _kept: set["asyncio.Future[None]"] = field(default_factory=set)

    @classmethod
    def of(cls, config: ServerConfig, engine: Engine) -> "Service":
        """UserError where a file that the config names cannot be used."""
        folder = ModelFolder.read(config.worker.folder, config.worker.chat_template)
        dialect = Dialect.of(folder)
        if config.worker.chat_template is not None and isinstance(dialect.writer, OwnWriter):
            want = "none: models of our own have one form, which they were trained with"
            raise UserError(at="--chat-template", got=str(config.worker.chat_template), want=want)
        keys = _keys(config)
        _check_budgets(config, () if keys is None else keys.keys)
        ledger = None if config.ledger is None else Ledger.open(config.ledger)
        writer = None if ledger is None else LedgerWriter(ledger)
        budgets = Budgets({}) if ledger is None else Budgets.of(ledger, time.time())
        limits = Limits(
            config.admission,
            config.prices or PriceTable(),
            budgets,
            refuse_for_s=lambda: 0.0 if writer is None else writer.refuse_for_s,
        )
        return cls(
            config,
            folder,
            dialect,
            engine,
            limits,
            Metrics(CollectorRegistry(), config.name),
            writer,
            keys,
            _admin_digest(config.admin_key_file),
            None if config.policy is None else Policy(config.policy),
        )

    @property
    def max_model_len(self) -> int:
        """As the engine has it, once it is loaded."""
        facts = self.engine.facts
        return self.config.worker.engine.max_model_len if facts is None else facts.max_model_len

    @cached_property
    def _longest_token_bytes(self) -> int:
        tokenizer = self.dialect.tokenizer
        return max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size))

    def check_length(self, num_chars: int, param: str) -> None:
        """ApiError (400) for texts that no context holds, before a processor is kept busy with encoding them."""
        most = self._longest_token_bytes * self.max_model_len
        if num_chars > most:
            message = f"{param}: {num_chars} characters; this model's context holds {most} at most"
            raise bad_request(message, param, "context_length_exceeded")

    def keep(self, future: "asyncio.Future[None]") -> None:
        """What must be done before the server ends."""
        self._kept.add(future)
        future.add_done_callback(self._kept.discard)

    async def close(self) -> None:
        """Once every request has its row: those that were broken off are about to write theirs."""
        if self._kept:
            _, left = await asyncio.wait(set(self._kept), timeout=_COUNTING_S)
            if left:
                _log.error("%d requests end without a row", len(left))
        await self.engine.close()
        if self.writer is not None:
            await self.writer.close()

    def authenticated(self, request: Request) -> Key | None:
        """The key that a request came with; None where the server asks for none. ApiError (401)."""
        if self.keys is None:
            return None
        key = self.keys.find(secret_of(request))
        if key is None:
            raise _unauthorized("Incorrect API key provided." if secret_of(request) else None)
        request.scope["key_id"] = key.id
        return key

    def is_admin(self, request: Request) -> bool:
        digest = digest_of(secret_of(request))
        return self.admin_sha256 is not None and hmac.compare_digest(digest, self.admin_sha256)

    def require_admin(self, request: Request) -> None:
        """ApiError: 401 without the admin key, 403 where the server has none, so that nobody may."""
        if self.admin_sha256 is None:
            raise ApiError(
                403, "This server was started without --admin-key-file.", code="no_admin"
            )
        if not self.is_admin(request):
            raise _unauthorized("The admin key is wanted here.", "admin_key_wanted")

    def require_operator(self, request: Request) -> None:
        """What is of all users, or of none: for the admin key, where there are keys at all. ApiError as above."""
        if self.keys is not None or self.admin_sha256 is not None:
            self.require_admin(request)

    async def body(self, request: Request) -> dict[str, Any]:
        """ApiError: 413 before anything is parsed, 400 for what is no JSON object."""
        limit, data = self.config.body.max_body_bytes, bytearray()
        declared = request.headers.get("content-length", "")
        too_large = ApiError(413, f"body: more than {limit} bytes", code="request_too_large")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        try:
            async with asyncio.timeout(self.config.body.read_s):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > limit:
                        raise too_large
        except TimeoutError:
            message = f"body: not here after {self.config.body.read_s:g} s"
            raise ApiError(408, message, code="request_timeout") from None
        if self.config.log_prompts:
            text = data.decode("utf-8", "replace")
            _log.info("asked", extra={"id": request.scope.get("request_id"), "body": text})
        if len(data) > _LONG_BODY_BYTES:
            return await asyncio.to_thread(read_object, bytes(data), self.config.body)
        return read_object(bytes(data), self.config.body)

    def check_model(self, name: str | None) -> str:
        """The name that a reply says. None: whoever names none means the one there is. ApiError (404)."""
        if name is None:
            return self.config.name
        if name not in self.config.served_model_names:
            known = ", ".join(self.config.served_model_names)
            message = f"The model `{name[:80]}` does not exist here; there is {known}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    async def prepared(self, ask: Ask) -> Prepared:
        """ApiError (400) for what the model cannot be asked."""
        try:
            return await self._encoded(ask, lambda: prepare(ask, self.dialect, self.max_model_len))
        except ContextTooLong as error:
            raise of_user_error(error, "context_length_exceeded") from None
        except UserError as error:
            raise of_user_error(error) from None

    async def prompt_ids(self, ask: Ask) -> tuple[int, ...]:
        """Of its messages, be they longer than the context. ApiError (400)."""
        try:
            return (await self._encoded(ask, lambda: prompt_of(ask, self.dialect))).ids
        except UserError as error:
            raise of_user_error(error) from None

    async def _encoded(self, ask: Ask, encode: Callable[[], T]) -> T:
        """Beside the loop where that takes long. ApiError (400) for what no context holds."""

        def checked() -> T:
            self.check_length(sum(_sizes(ask)), "messages")
            return encode()

        is_long = len(ask.messages or ()) > _MANY_MESSAGES or any(
            size > _LONG_CHARS for size in itertools.accumulate(_sizes(ask))
        )
        return await asyncio.to_thread(checked) if is_long else checked()

    async def open_job(
        self,
        request: Request,
        *,
        endpoint: str,
        model: str,
        key: Key | None,
        asks: Sequence[Ask],
        id_prefix: str = "chatcmpl-",
    ) -> Job:
        """Admitted, with a place of its own. ApiError: 400, 402, 429 or 503."""
        arrived_s: float = request.scope.get("arrived_s", time.monotonic())
        self.engine.check()
        if key is not None:
            # What others have asked is nobody's to find out by how fast a prompt is read.
            asks = [
                replace(ask, cache_salt=f"{key.id} {ask.cache_salt}", owner=key.id) for ask in asks
            ]
        prepared = [await self.prepared(ask) for ask in asks]
        request_id = f"{id_prefix}{uuid.uuid4().hex}"
        admission = await self._admitted(request, key, prepared)
        if isinstance(admission, Refusal):
            self.metrics.refused(admission)
            raise ApiError(
                admission.status, admission.message, code=admission.code, headers=admission.headers
            )
        try:  # behind the limits: a reviewer's work is nobody's for nothing
            verdict = await self._asked_verdict(
                prepared, request_id, endpoint, model, key, arrived_s, admission
            )
        except BaseException:
            admission.release()
            raise
        request.scope["job"] = job = Job(
            self,
            request_id=request_id,
            endpoint=endpoint,
            model=model,
            key=key,
            prepared=prepared,
            admission=admission,
            arrived_s=arrived_s,
            asked_verdict=verdict,
        )
        return job

    async def _admitted(
        self, request: Request, key: Key | None, prepared: Sequence[Prepared]
    ) -> Admission | Refusal:
        """ClientDisconnect where whoever asked leaves while he waits: his place is another's."""
        asking = asyncio.ensure_future(
            self.limits.admit(
                key,
                prompt_tokens=sum(one.num_prompt for one in prepared),
                max_completion_tokens=sum(one.max_completion for one in prepared),
                num_choices=sum(one.request.params.n for one in prepared),
            )
        )
        gone = asyncio.ensure_future(until_gone(request.receive))
        try:
            await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if asking.done() and isinstance(admission := asking.result(), Admission):
                admission.release()
            raise
        finally:
            gone.cancel()
            if not asking.done():
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
        if asking.cancelled():
            raise ClientDisconnect
        return asking.result()

    async def _asked_verdict(
        self,
        prepared: Sequence[Prepared],
        request_id: str,
        endpoint: str,
        model: str,
        key: Key | None,
        arrived_s: float,
        admission: Admission,
    ) -> str | None:
        """What the policy notes of a request. ApiError (400) where it does not let it pass, which the ledger has."""
        if self.policy is None:
            return None
        verdict = await self.policy.review(asked_text(prepared, self.dialect.tokenizer), "input")
        label = verdict.label("input")
        if verdict.action != "block":
            return label
        row = Row(
            request_id=request_id,
            time_s=admission.time_s,
            key_id=NOBODY if key is None else key.id,
            endpoint=endpoint,
            model=model,
            weight_version=self.config.worker.weight_version,
            queue_s=admission.queue_s,
            total_s=time.monotonic() - arrived_s,
            finish_reason="content_filter",
            status=400,
            verdict=label,
        )
        if self.writer is not None:
            await self.writer.add(row)
        self.metrics.observe(row)
        raise ApiError(400, "The policy of this server does not allow this.", code="content_filter")


def _keys(config: ServerConfig) -> KeyRing | OneKey | None:
    """None: nobody is asked for one."""
    if config.api_keys is not None:
        return KeyRing.open(config.api_keys)
    sha256 = config.api_key_sha256
    return None if sha256 is None else OneKey("NALAR_API_KEY", sha256)


def _check_budgets(config: ServerConfig, keys: Sequence[Key]) -> None:
    """UserError where a budget would never be spent. Keys that are made later are not looked at."""
    names = [k.name for k in keys if k.revoked is None and k.monthly_budget_usd is not None]
    if names and config.prices is None:
        raise UserError(
            at="--api-keys",
            got=f"a budget of {names[0]}, and no prices",
            want="prices, by which a budget is spent",
            hint="--prices 0.56 0.14 2.24",
        )
    if names and config.ledger is None:
        _log.warning("without --ledger what keys have spent is forgotten when the server ends")


def _sizes(ask: Ask) -> Iterator[int]:
    """Characters of whatever a template may render, text by text, about: a text without a word costs some too."""
    tools = [(tool.name, tool.description, tool.parameters) for tool in ask.tools]
    return _sizes_in([ask.messages or (), tools, ask.template_kwargs])


def _sizes_in(value: Any) -> Iterator[int]:
    yield 1 + (len(value) if isinstance(value, str) else 0)
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield len(str(name))
            yield from _sizes_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _sizes_in(one)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def secret_of(request: Request) -> str:
    """Of `Authorization: Bearer`, or of Anthropic's `x-api-key`; empty where there is none."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    return request.headers.get("x-api-key", "")


def _unauthorized(message: str | None, code: str = "invalid_api_key") -> ApiError:
    message = message or "An API key is wanted, as `Authorization: Bearer ...`."
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def _admin_digest(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        first = path.read_text(encoding="utf-8").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(at=str(path), got=str(error), want="a file with the admin key") from None
    if len(first) < 16:
        raise UserError(
            at=str(path), got=f"{len(first)} characters", want="a key of 16 characters at least"
        )
    return digest_of(first)
