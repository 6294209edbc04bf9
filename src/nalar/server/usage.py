"""Usage added up, as `GET /usage` and `nalar usage --json` give it."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict

from nalar.config import UserError
from nalar.server.ledger import GROUPS, By, Ledger, Sum, bounds_s

SCHEMA_VERSION = 1
_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
_DAY_FORM = "%Y-%m-%d"


class UsageSum(BaseModel):
    """What the requests of one group add up to."""

    model_config = ConfigDict(frozen=True)

    key: str | None = None
    """Id of a key, empty for requests without one. Null where the sum is over all of them, as the next two."""
    day: str | None = None
    model: str | None = None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt tokens, those that were found in the cache."""
    completion_tokens: int
    reasoning_tokens: int
    """Of the completion tokens, those of thoughts."""
    cost_usd: float

    @classmethod
    def of(cls, one: Sum) -> "UsageSum":
        return cls(
            key=one.key_id,
            day=one.day,
            model=one.model,
            requests=one.num_requests,
            prompt_tokens=one.prompt_tokens,
            cached_tokens=one.cached_tokens,
            completion_tokens=one.completion_tokens,
            reasoning_tokens=one.reasoning_tokens,
            cost_usd=one.cost_usd,
        )


class Usage(BaseModel):
    """The sums of a stretch of days, and all of it. Only gains keys."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    by: tuple[By, ...]
    since: str | None
    """The first day or month, of UTC, and the last one; null: from the first row, to the newest."""
    until: str | None
    sums: tuple[UsageSum, ...]
    total: UsageSum


def usage(
    ledger: Ledger,
    by: Iterable[By] = ("key",),
    since: str | None = None,
    until: str | None = None,
    key_id: str | None = None,
) -> Usage:
    """Sums of the days from `since` to `until`, both with them: `2026-11-29`, or a month, `2026-11`.

    key_id: of this key alone. UserError where a day is none. Reads the whole stretch: not for the event loop.
    """
    first_s = None if since is None else span_s(since, "since")[0]
    after_s = None if until is None else span_s(until, "until")[1]
    names = tuple(name for name in GROUPS if name in set(by))
    found = ledger.sums(names, first_s, after_s, key_id)
    total = Sum(
        num_requests=sum(one.num_requests for one in found),
        prompt_tokens=sum(one.prompt_tokens for one in found),
        cached_tokens=sum(one.cached_tokens for one in found),
        completion_tokens=sum(one.completion_tokens for one in found),
        reasoning_tokens=sum(one.reasoning_tokens for one in found),
        cost_picodollars=sum(one.cost_picodollars for one in found),
    )
    return Usage(
        by=names,
        since=since,
        until=until,
        sums=tuple(map(UsageSum.of, found)),
        total=UsageSum.of(total),
    )


def span_s(text: str, at: str) -> tuple[float, float]:
    """When a day or a month begins, and when it is over."""
    if _MONTH.fullmatch(text) and text[:4] not in ("0000", "9999"):
        return bounds_s(text)
    try:
        day = datetime.strptime(text, _DAY_FORM).replace(tzinfo=UTC)
        return day.timestamp(), (day + timedelta(days=1)).timestamp()
    except (ValueError, OverflowError):
        raise UserError(
            at=at, got=repr(text), want="a day or a month of UTC, such as 2026-11-29 or 2026-11"
        ) from None
