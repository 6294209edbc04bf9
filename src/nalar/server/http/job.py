"""One request from its admission to its row in the ledger, whatever API it came by.

job = await service.open_job(request, endpoint, model, asks)
async with job: ... async for said in job.said(): ...
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Protocol

from nalar.policy import Policy
from nalar.server.answer import Prepared, Tally, answer
from nalar.server.ask import Ended, Said, Usage
from nalar.server.config import ServerConfig
from nalar.server.engine.link import Engine
from nalar.server.http.failures import error_of
from nalar.server.http.reviewed import Reviewed
from nalar.server.keys import Key
from nalar.server.ledger import LedgerError, Row
from nalar.server.ledger_writer import LedgerWriter
from nalar.server.limits import NOBODY, Admission
from nalar.server.metrics import Metrics

_log = logging.getLogger(__name__)

CLIENT_GONE = 499
READER_STUCK = 408
BROKEN_OFF = 503
"""By the server, which is told to stop."""


class Counting(Protocol):
    """What a server has for all its requests."""

    config: ServerConfig
    engine: Engine
    policy: Policy | None
    writer: LedgerWriter | None
    metrics: Metrics

    def keep(self, future: "asyncio.Future[None]") -> None:
        """What must be done before the server ends."""


class Job:
    """Answers its asks side by side. Left early, in whatever way, it ends the engine's work and is counted too.

    The row is on the disk before `said` gives Usage, which is the last; no byte behind it is sent sooner.
    """

    def __init__(
        self,
        service: Counting,
        *,
        request_id: str,
        endpoint: str,
        model: str,
        key: Key | None,
        prepared: Sequence[Prepared],
        admission: Admission,
        arrived_s: float,
        asked_verdict: str | None = None,
    ) -> None:
        """asked_verdict: what the policy noted of the request."""
        self.id, self.model = request_id, model
        self.created = int(admission.time_s)
        self._service, self._endpoint, self._key = service, endpoint, key
        self._prepared, self._admission, self._arrived_s = prepared, admission, arrived_s
        self._tallies = [Tally(one.num_prompt) for one in prepared]
        self._asked_verdict = asked_verdict
        policy = service.policy
        has_review = policy is not None and policy.config.output != "off"
        self._reviewed = Reviewed(policy, prepared) if policy and has_review else None
        self._first_token_s: float | None = None
        self._reason: str | None = None
        self._status = CLIENT_GONE
        self._is_recorded = False
        self._counted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        service.keep(self._counted)

    @property
    def num_prompt(self) -> int:
        """Tokens that were asked, of all asks."""
        return sum(one.num_prompt for one in self._prepared)

    @property
    def headers(self) -> dict[str, str]:
        return self._admission.headers

    def reader_is_stuck(self) -> None:
        """For its row: it ends because nobody reads what it says."""
        self._status, self._reason = READER_STUCK, "send_timeout"

    @property
    def status(self) -> int:
        return self._status

    @property
    def facts(self) -> dict[str, str | int]:
        """For the log, to find its row by; nothing of what was said."""
        usage = self._usage()
        return {
            "reply": self.id,
            "model": self.model,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }

    def failed(self, error: BaseException) -> None:
        """For its row: what ends it, where it is not the reader who leaves."""
        if self._status != CLIENT_GONE:
            return
        if isinstance(error, asyncio.CancelledError):  # a reader who leaves cancels nothing
            self._status = BROKEN_OFF
        elif isinstance(error, Exception):
            self._status = error_of(error).status

    async def __aenter__(self) -> "Job":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Count what is not counted yet; in a task of its own, since whoever leaves may be cancelled again."""
        if error is not None:
            self.failed(error)
        if not self._is_recorded:
            self._is_recorded = True
            self._service.keep(asyncio.create_task(self._record_broken()))

    async def said(self) -> AsyncGenerator[Said]:
        """All that the model says, of all asks; choices are numbered through. Usage is the last, with its cost."""
        try:
            merged = self._answered() if len(self._prepared) == 1 else self._merged()
            passed = merged if self._reviewed is None else self._reviewed.said(merged)
            async with aclosing(passed):
                async for said in passed:
                    if isinstance(said, Usage):  # of one ask
                        continue
                    if self._first_token_s is None:
                        self._first_token_s = time.monotonic() - self._arrived_s
                    if isinstance(said, Ended):
                        self._admission.choice_ended()
                        if self._reason != "length":
                            self._reason = said.finish_reason
                    yield said
            self._status, self._is_recorded = 200, True
            usage = await self._recorded()
        except Exception as error:
            self.failed(error)
            raise
        yield usage

    def _answered(self) -> AsyncGenerator[Said]:
        """The one ask."""
        return answer(self._prepared[0], self._service.engine, tally=self._tallies[0])

    async def _merged(self) -> AsyncGenerator[Said]:
        """Of several asks what comes first."""
        queue: asyncio.Queue[Said | Exception | None] = asyncio.Queue()
        tasks = []
        first = 0
        for prepared, tally in zip(self._prepared, self._tallies, strict=True):
            tasks.append(asyncio.create_task(self._pour(prepared, tally, first, queue)))
            first += prepared.request.params.n
        try:
            left = len(tasks)
            while left:
                came = await queue.get()
                if isinstance(came, Exception):
                    raise came
                left -= came is None
                if came is not None:
                    yield came
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pour(
        self,
        prepared: Prepared,
        tally: Tally,
        first: int,
        queue: "asyncio.Queue[Said | Exception | None]",
    ) -> None:
        try:
            answered = answer(prepared, self._service.engine, first_choice=first, tally=tally)
            async with aclosing(answered) as one:
                async for said in one:
                    if not isinstance(said, Usage):
                        queue.put_nowait(said)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    @property
    def _verdict(self) -> str | None:
        """Of what was said, where the policy stopped that; else of the request."""
        said = None if self._reviewed is None else self._reviewed.verdict
        label = None if said is None else said.label("output")
        if said is not None and said.action == "block":
            return label
        return self._asked_verdict or label

    def _usage(self) -> Usage:
        """What the server refused or failed at costs nothing where no token came of a prompt; who leaves pays for what
        was begun for him."""
        is_ours = self._status not in (200, CLIENT_GONE, READER_STUCK)
        each = [tally.usage() for tally in self._tallies if tally.completion_tokens or not is_ours]
        usage = Usage(
            sum(one.prompt_tokens for one in each),
            sum(one.cached_tokens for one in each),
            sum(one.completion_tokens for one in each),
            sum(one.reasoning_tokens for one in each),
        )
        prices = self._service.config.prices
        if prices is None:
            return usage
        cost = prices.cost_usd(usage)
        return Usage(
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.reasoning_tokens,
            cost,
        )

    async def _recorded(self) -> Usage:
        """To the end, also where the reader leaves meanwhile: what he has read is charged to his budget."""
        recording = asyncio.create_task(self._record())
        try:
            return await asyncio.shield(recording)
        except asyncio.CancelledError:
            recording.add_done_callback(_note_failure)
            raise

    async def _record(self) -> Usage:
        usage = self._usage()
        row = Row(
            request_id=self.id,
            time_s=self._admission.time_s,
            key_id=NOBODY if self._key is None else self._key.id,
            endpoint=self._endpoint,
            model=self.model,
            weight_version=self._service.config.worker.weight_version,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=min(usage.reasoning_tokens, usage.completion_tokens),
            completion_tokens=usage.completion_tokens,
            queue_s=self._admission.queue_s,
            first_token_s=self._first_token_s,
            total_s=time.monotonic() - self._arrived_s,
            finish_reason=self._reason,
            status=self._status,
            cost_usd=usage.cost_usd,
            verdict=self._verdict,
        )
        try:
            if self._service.writer is not None:
                await self._service.writer.add(row)
            self._admission.settle(usage)
            self._service.metrics.observe(row)
        finally:
            self._admission.release()
            self._counted.set_result(None)
        return usage

    async def _record_broken(self) -> None:
        try:
            await self._record()
        except LedgerError as error:
            _log.error("a row could not be kept: %s", error)


def _note_failure(recording: "asyncio.Task[Usage]") -> None:
    if not recording.cancelled() and (error := recording.exception()) is not None:
        _log.error("a row could not be kept: %s", error)
