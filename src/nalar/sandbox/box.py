"""Run a function of a program that nobody trusts on inputs, and get plain values back. The caller compares them."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from nalar.config import UserError
from nalar.sandbox.config import TIERS, SandboxConfig, Tier
from nalar.sandbox.worker import Worker, WorkerError

_FASTEST: tuple[Tier, ...] = ("namespaces", "bubblewrap", "landlock", "limits")
_START_S = 60.0
_GRACE_S = 15.0
"""Beyond the limit of the box, its own server may take to say that the box is over."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    kind: Literal["done", "failed", "timeout", "crashed", "broken"]
    """done: it ran, and `values` has an entry for each call. failed: it did not load, or has no such function.
    timeout, crashed: it ran over a limit, or was ended. broken: the box itself does not work, which is no fault of
    the program's."""
    values: tuple[tuple[bool, Any], ...] = ()
    """Of each call: whether it gave a plain value, and the value, or the name of what was raised instead."""
    why: str = ""


class Box:
    """One box after the other, each new and empty."""

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self.config = config or SandboxConfig()
        self._server = Worker("nalar.sandbox.box_server", memory_bytes=None)

    @cached_property
    def objections(self) -> dict[str, str | None]:
        """For each tier why it does not work on this machine; None where it does."""
        try:
            found: dict[str, str | None] = self._server.ask({}, timeout_s=_START_S)
        except WorkerError as error:
            return dict.fromkeys(TIERS, str(error))
        return found

    @cached_property
    def tier(self) -> Tier:
        """The one that is used. UserError where the machine has none that is strong enough."""
        config = self.config
        asked = _FASTEST if config.tier == "auto" else (config.tier,)
        least = TIERS.index(config.min_tier)
        for tier in asked:
            if TIERS.index(tier) >= least and self.objections.get(tier, "unknown") is None:
                return tier
        told = "; ".join(f"{tier}: {why}" for tier, why in self.objections.items() if why)
        works = [tier for tier in TIERS if self.objections.get(tier, "unknown") is None]
        raise UserError(
            at="sandbox",
            got=f"a machine whose strongest isolation is {works[-1] if works else 'none'} ({told})",
            want=f"{config.min_tier if config.tier == 'auto' else config.tier}",
            hint="install bubblewrap, allow user namespaces, or set min_tier lower (docs/sandbox.md)",
        )

    def call(self, program: str, function: str, calls: Sequence[Sequence[Any]]) -> Outcome:
        """Load a program anew and call its function once with each list of arguments, plain values all of them."""
        config = self.config
        limits = config.model_dump(exclude={"tier", "min_tier"})
        job = {
            "program": program,
            "function": function,
            "calls": [json.dumps(arguments) for arguments in calls],
            "limits": limits,
        }
        try:
            report = self._server.ask(
                {"job": job, "tier": self.tier}, timeout_s=config.wall_s + _GRACE_S
            )
        except WorkerError as error:
            return Outcome("broken", why=str(error))
        if report.get("outcome") == "ended":
            return _read(report["output"], len(calls))
        if report.get("outcome") in ("timeout", "crashed"):
            return Outcome(report["outcome"], why=report.get("why", ""))
        return Outcome("broken", why=str(report.get("why") or report.get("error")))

    def close(self) -> None:
        self._server.close()


def _read(output: str, num_calls: int) -> Outcome:
    """What the box wrote, in base64. A program may write there too, so nothing is taken on trust but the form."""
    try:
        document = json.loads(base64.b64decode(output).decode(errors="replace"))
    except (ValueError, RecursionError):
        return Outcome("failed", why="no readable output")
    if not isinstance(document, dict):
        return Outcome("failed", why="no readable output")
    values = document.get("values")
    if not (isinstance(values, list) and len(values) == num_calls) or not all(
        isinstance(v, list) and len(v) == 2 and isinstance(v[0], bool) for v in values
    ):
        return Outcome("failed", why=str(document.get("failed", "no readable output"))[:100])
    return Outcome("done", tuple((ok, value) for ok, value in values))


def same(left: Any, right: Any) -> bool:
    """Equal in type and value, all the way down: 1 is neither True nor 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)
