"""`nalar usage`: what a server's keys used and what it costs, from its ledger. Runs beside the server, too."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from nalar.cli import flags
from nalar.cli.output import Output
from nalar.server.keys import KeyRing
from nalar.server.ledger import By, Ledger
from nalar.server.usage import Usage as Added
from nalar.server.usage import UsageSum, usage

_NO_KEY = "(no key)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """Add up the rows of LEDGER: requests, tokens and cost, by key, day (UTC) and model.

    Try, with the file that a server was given:

    nalar usage ledger.db --by key day --since 2026-11
    """

    ledger: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The same file as LEDGER, by name. The server may be running."""
    by: tuple[By, ...] = ("key",)
    """One or more: a sum for each."""
    since: Annotated[str | None, tyro.conf.arg(metavar="DAY")] = None
    """The first day, such as 2026-11-29, or month, 2026-11, of UTC. None: all there are."""
    until: Annotated[str | None, tyro.conf.arg(metavar="DAY")] = None
    """The last day or month. None: all there are."""
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The file of keys, to show their names."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    word, rest = flags.leading_word(args)
    words = rest if word is None else ["--ledger", word, *rest]
    asked = flags.parse(Usage, words, verb="usage", usage="[LEDGER]")
    names = {} if asked.keys is None else _names(asked.keys)
    ledger = Ledger.open(asked.ledger, read_only=True)
    added = usage(ledger, asked.by, asked.since, asked.until)
    if added.sums and added.total.requests:
        out.text(_table(added, names))
    else:
        out.text("no requests")
    out.document(added)
    return 0


def _names(path: Path) -> dict[str, str]:
    return {key.id: key.name for key in KeyRing.open(path).keys}


def _table(added: Added, names: dict[str, str]) -> Table:
    table = Table(*added.by)
    for heading in ("requests", "input", "of it cached", "output", "of it thought", "cost"):
        table.add_column(heading, justify="right")
    for one in added.sums:
        key = None if one.key is None else _named(one.key, names)
        groups = {"key": key, "day": one.day, "model": one.model}
        table.add_row(*(groups[name] or "" for name in added.by), *_figures(one))
    if added.by:
        table.add_section()
        table.add_row("all", *[""] * (len(added.by) - 1), *_figures(added.total))
    return table


def _named(key_id: str, names: dict[str, str]) -> str:
    if not key_id:
        return _NO_KEY
    return f"{names[key_id]} ({key_id})" if key_id in names else key_id


def _figures(one: UsageSum) -> tuple[str, ...]:
    counts = (
        one.requests,
        one.prompt_tokens,
        one.cached_tokens,
        one.completion_tokens,
        one.reasoning_tokens,
    )
    # More digits than money has elsewhere: a bill adds up many small sums.
    return (*(f"{count:,}" for count in counts), f"${one.cost_usd:,.6f}")
