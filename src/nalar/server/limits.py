"""Who may ask now, who waits, who is told to come back: rates, budgets, and one bounded queue that is fair to keys.

Places are counted in choices, since each is a row of the engine: a request of n choices takes n. What waits is granted
to the key with the fewest choices under way, the one served longest ago where several have as few; nobody overtakes it
where its request has no room yet. Where the queue overflows, the newest request of the key that has most of it is told
to come back: one key that floods the server takes its places from itself.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from nalar.server.buckets import Bucket
from nalar.server.budgets import Budgets
from nalar.server.keys import Key
from nalar.server.ledger import month_of
from nalar.server.limits_config import AdmissionConfig
from nalar.server.prices_config import Counted, PriceTable, picodollars, usd

NOBODY = ""
"""The key of requests on a server that asks for none."""
_NEWEST = 0.1
"""Weight of the request that ended last, in the mean time that one takes."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not taken, in the words and codes of OpenAI's errors."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None
    """When it is worth asking again, as far as can be told. None: not by waiting."""
    rates: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        wait = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return {**self.rates, **wait}


class Admission:
    """A request that may be asked of the engine, until this context ends. `settle` says what it took."""

    def __init__(self, limits: "Limits", account: "_Account", size: "_Size") -> None:
        self._limits, self._account, self._size = limits, account, size
        self.time_s = limits.clock_s()
        """When it was admitted, in seconds since 1970: what its row in the ledger has to say."""
        self.queue_s = 0.0
        """How long it waited."""
        self._begun_s = limits.now_s()
        self._usage: Counted | None = None
        self._is_open = True
        self._num_held = size.num_choices

    def settle(self, usage: Counted) -> None:
        """What it took: said once its row is on the disk, before the context ends. Where nobody says, it took nothing:
        what was not counted is not charged."""
        self._usage = usage

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*`, of the limits that the key has."""
        return self._account.headers(self._limits.now_s())

    def choice_ended(self) -> None:
        """Its place is another's. The last one's is kept until the request is counted."""
        if self._num_held > 1:
            self._num_held -= 1
            self._limits._freed(self._account, 1)

    def __enter__(self) -> "Admission":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give its place to the next. More than once is once."""
        if self._is_open:
            self._is_open = False
            self._limits._settled(self, self._account, self._size, self._usage, self._begun_s)
            self._limits._freed(self._account, self._num_held)


@dataclass(frozen=True)
class _Size:
    """What a request takes, as far as it is known before."""

    num_choices: int
    prompt_tokens: int
    charged_tokens: int
    """Of the bucket."""
    most: int
    """Picodollars reserved."""


@dataclass(eq=False)
class _Waiting:
    account: "_Account"
    size: _Size
    outcome: "asyncio.Future[Admission | Refusal]"
    since_s: float


class _Account:
    """One key's share of everything."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = 0
        """Choices; so are those that wait."""
        self.waiting: deque[_Waiting] = deque()
        self.waiting_choices = self.waiting_tokens = 0
        self.served = 0
        """The number of the grant that was its last one."""

    def follow(self, key: Key | None, config: AdmissionConfig, now_s: float) -> None:
        """Take over limits that were changed since."""
        rates = (key and key.requests_per_minute, key and key.tokens_per_minute)
        self.requests = _resized(self.requests, rates[0] or config.requests_per_minute, now_s)
        self.tokens = _resized(self.tokens, rates[1] or config.tokens_per_minute, now_s)

    def charge(self, requests: int, tokens: int, now_s: float) -> None:
        if self.requests is not None:
            self.requests.take(requests, now_s)
        if self.tokens is not None:
            self.tokens.take(tokens, now_s)

    def headers(self, now_s: float) -> dict[str, str]:
        requests = self.requests.headers("requests", now_s) if self.requests is not None else {}
        tokens = self.tokens.headers("tokens", now_s) if self.tokens is not None else {}
        return requests | tokens


class Limits:
    """Decides over every request of one event loop."""

    def __init__(
        self,
        config: AdmissionConfig,
        prices: PriceTable,
        budgets: Budgets,
        *,
        refuse_for_s: Callable[[], float] = lambda: 0.0,
        now_s: Callable[[], float] = time.monotonic,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """refuse_for_s: for how long nothing can be counted (`LedgerWriter.refuse_for_s`), and so nothing is taken."""
        self.config, self.prices, self.budgets = config, prices, budgets
        self.refuse_for_s, self.now_s, self.clock_s = refuse_for_s, now_s, clock_s
        self.running = 0
        """Choices."""
        self.queued = self.queued_choices = self.queued_tokens = 0
        """Requests, and what they are of."""
        self._grants = 0
        self._accounts: dict[str, _Account] = {}
        self._mean_s = 1.0

    async def admit(
        self,
        key: Key | None,
        *,
        prompt_tokens: int,
        max_completion_tokens: int,
        num_choices: int = 1,
    ) -> Admission | Refusal:
        """Waits for places where too few are free. A caller that is cancelled leaves nothing behind.

        max_completion_tokens: the most that all choices together may have.
        """
        now_s = self.now_s()
        account = self._account(key, now_s)
        expected = min(max_completion_tokens, num_choices * self.config.expected_completion_tokens)
        charged = prompt_tokens + expected
        if account.tokens is not None:
            charged = account.tokens.price(charged)
        size = _Size(
            num_choices,
            prompt_tokens,
            charged,
            self.prices.most_picodollars(prompt_tokens, max_completion_tokens),
        )
        refusal = self._refusal(key, account, size, now_s)
        if refusal is not None:
            return refusal
        account.charge(1, size.charged_tokens, now_s)
        self.budgets.reserve(account.key_id, size.most)
        if self._has_room(size) and not self.queued:
            return self._granted(account, size)
        return await self._wait(account, size, now_s)

    def _has_room(self, size: _Size) -> bool:
        return self.running + size.num_choices <= self.config.max_running

    def _account(self, key: Key | None, now_s: float) -> _Account:
        key_id = NOBODY if key is None else key.id
        account = self._accounts.setdefault(key_id, _Account(key_id))
        account.follow(key, self.config, now_s)
        return account

    def _refusal(
        self, key: Key | None, account: _Account, size: _Size, now_s: float
    ) -> Refusal | None:
        """Nothing is taken here: a request that is refused costs its key nothing."""
        closed_s = self.refuse_for_s()
        if closed_s > 0:
            message = "The server cannot record usage at the moment, so it answers nothing."
            return Refusal(503, "ledger_unavailable", message, _whole(closed_s))
        return (
            self._too_many_choices(key, size)
            or self._over_budget(key, account)
            or self._over_rate(account, size, now_s)
            or self._over_parallel(key, account, size)
        )

    def _too_many_choices(self, key: Key | None, size: _Size) -> Refusal | None:
        """Those that there would never be room for."""
        most = min(self.config.max_running, self._max_parallel(key) or self.config.max_running)
        if size.num_choices <= most:
            return None
        message = f"{size.num_choices} choices: a request may have {most}, of n times its prompts."
        return Refusal(400, "too_many_choices", message)

    def _max_parallel(self, key: Key | None) -> int | None:
        return (key and key.max_parallel) or self.config.max_parallel

    def _over_budget(self, key: Key | None, account: _Account) -> Refusal | None:
        if key is None or key.monthly_budget_usd is None:
            return None
        month = month_of(self.clock_s())
        budget = picodollars(key.monthly_budget_usd)
        spent = self.budgets.spent(account.key_id, month)
        if spent >= budget:
            message = f"This key has spent ${usd(spent):.4f} of its ${usd(budget):g} for {month}."
            return Refusal(402, "insufficient_quota", message)
        if spent + self.budgets.reserved(account.key_id) >= budget:
            message = "What this key has under way may use up its budget for this month: ask again when some has ended."
            wait_s = self._until_one_ends_s(account)
            return Refusal(429, "budget_reserved", message, wait_s, account.headers(self.now_s()))
        return None

    def _over_rate(self, account: _Account, size: _Size, now_s: float) -> Refusal | None:
        asked = (
            ("requests", account.requests, 1),
            ("tokens", account.tokens, size.charged_tokens),
        )
        for what, bucket, amount in asked:
            if bucket is not None and (wait_s := bucket.wait_s(amount, now_s)) > 0:
                message = f"This key may use {bucket.per_minute} {what} a minute."
                return Refusal(
                    429, "rate_limit_exceeded", message, _whole(wait_s), account.headers(now_s)
                )
        return None

    def _over_parallel(self, key: Key | None, account: _Account, size: _Size) -> Refusal | None:
        most = self._max_parallel(key)
        held = account.running + account.waiting_choices
        if most is None or held + size.num_choices <= most:
            return None
        message = f"This key may have {most} choices under way at once; {held} are."
        wait_s = self._until_one_ends_s(account)
        return Refusal(429, "too_many_parallel", message, wait_s, account.headers(self.now_s()))

    def _until_one_ends_s(self, account: _Account) -> int:
        return _whole(self._mean_s / max(account.running, 1))

    async def _wait(self, account: _Account, size: _Size, now_s: float) -> Admission | Refusal:
        outcome: asyncio.Future[Admission | Refusal] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(account, size, outcome, now_s)
        account.waiting.append(waiting)
        self._count(waiting, +1)
        self._shed(account)
        self._grant_next()  # its turn may be before one that there is no room for
        try:
            return await outcome
        except asyncio.CancelledError:
            if outcome.done() and not outcome.cancelled():  # granted in the very moment it left
                admission = outcome.result()
                if isinstance(admission, Admission):
                    admission.release()
            elif waiting in account.waiting:
                account.waiting.remove(waiting)
                self._count(waiting, -1)
                self._undo(account, size)
                self._grant_next()  # others may have waited for it to have room
            raise

    def _shed(self, newcomer: _Account) -> None:
        """Where more waits than may, the newest of the key that has most of it goes, the newcomer where all are even.

        A single prompt may be longer than all that may wait.
        """
        while self.queued_choices > self.config.max_queued or (
            self.queued_tokens > self.config.max_queued_tokens and self.queued > 1
        ):
            by_tokens = self.queued_choices <= self.config.max_queued
            most = max(
                (account for account in self._accounts.values() if account.waiting),
                key=lambda a: (
                    a.waiting_tokens if by_tokens else a.waiting_choices,
                    a is newcomer,
                ),
            )
            gone = most.waiting.pop()
            self._count(gone, -1)
            self._undo(most, gone.size)
            wait_s = _whole((self.queued_choices + 1) * self._mean_s / self.config.max_running)
            message = "The server has as many requests waiting as it takes."
            rates = most.headers(self.now_s())
            if not gone.outcome.done():  # or its client has left in this very moment
                gone.outcome.set_result(Refusal(429, "queue_full", message, wait_s, rates))

    def _undo(self, account: _Account, size: _Size) -> None:
        """Of a request that was never begun."""
        account.charge(-1, -size.charged_tokens, self.now_s())
        self.budgets.settle(account.key_id, month_of(self.clock_s()), size.most, 0)

    def _count(self, waiting: _Waiting, by: int) -> None:
        account, size = waiting.account, waiting.size
        self.queued += by
        self.queued_choices += by * size.num_choices
        self.queued_tokens += by * size.prompt_tokens
        account.waiting_choices += by * size.num_choices
        account.waiting_tokens += by * size.prompt_tokens

    def _granted(self, account: _Account, size: _Size) -> Admission:
        self.running += size.num_choices
        account.running += size.num_choices
        self._grants += 1
        account.served = self._grants
        return Admission(self, account, size)

    def _freed(self, account: _Account, num_choices: int) -> None:
        self.running -= num_choices
        account.running -= num_choices
        self._grant_next()

    def _settled(
        self,
        admission: Admission,
        account: _Account,
        size: _Size,
        usage: Counted | None,
        begun_s: float,
    ) -> None:
        now_s = self.now_s()
        used = usage.prompt_tokens + usage.completion_tokens if usage else 0
        account.charge(0, used - size.charged_tokens, now_s)
        cost = self.prices.cost_picodollars(usage) if usage else 0
        self.budgets.settle(account.key_id, month_of(admission.time_s), size.most, cost)
        self._mean_s += _NEWEST * (now_s - begun_s - self._mean_s)

    def _grant_next(self) -> None:
        while self.queued:
            account = min(
                (account for account in self._accounts.values() if account.waiting),
                key=lambda a: (a.running, a.served),
            )
            waiting = account.waiting[0]
            if not (self._has_room(waiting.size) or waiting.outcome.done()):
                return
            account.waiting.popleft()
            self._count(waiting, -1)
            if waiting.outcome.done():  # cancelled, and not yet away
                self._undo(account, waiting.size)
                continue
            admission = self._granted(account, waiting.size)
            admission.queue_s = self.now_s() - waiting.since_s
            waiting.outcome.set_result(admission)


def _resized(bucket: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now_s)
    if bucket.per_minute != per_minute:
        bucket.resize(per_minute, now_s)
    return bucket


def _whole(seconds: float) -> int:
    """Whole seconds of a Retry-After, at least one."""
    return max(math.ceil(seconds), 1)
