"""`nalar keys`: the file of API keys of a server. A server that runs sees a change within seconds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel
from rich.table import Table

from nalar.cli import flags
from nalar.cli.output import Document, Output
from nalar.evals.units import NONE
from nalar.server.keys import Key, KeyRing

_Number = Annotated[int | None, tyro.conf.arg(metavar="INT")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Create:
    """Make a key and show its secret, once. The file is made where there is none.

    Try:

    nalar keys create ann --file keys.json --monthly-budget-usd 5
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Whose it is. One key in force has a name."""
    file: Path = Path("keys.json")
    """The file of keys; `nalar serve` is given the same."""
    monthly_budget_usd: Annotated[float | None, tyro.conf.arg(metavar="USD")] = None
    """What it may spend in a month of UTC. None: no limit, as for the next three."""
    requests_per_minute: _Number = None
    """Requests that it may begin in a minute."""
    tokens_per_minute: _Number = None
    """Of prompts and answers together."""
    max_parallel: _Number = None
    """Choices under way at once: a request of n choices counts n times."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """List the keys of a file, revoked ones too.

    Try:

    nalar keys list --file keys.json
    """

    file: Path = Path("keys.json")
    """The file of keys."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revoke:
    """End a key: a server that runs refuses it within seconds. What is under way goes on.

    Try:

    nalar keys revoke ann --file keys.json
    """

    key: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="KEY")]
    """Its name or its id."""
    file: Path = Path("keys.json")
    """The file of keys."""
    json: bool = False
    """Print one JSON document on stdout, all else on stderr."""


Keys = (
    Annotated[Create, tyro.conf.subcommand("create")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Revoke, tyro.conf.subcommand("revoke")]
)


class KeyForm(BaseModel):
    """A key without its hash. Null: no limit; of `revoked`: in force."""

    id: str
    name: str
    created: str
    revoked: str | None
    monthly_budget_usd: float | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_parallel: int | None

    @classmethod
    def of(cls, key: Key) -> "KeyForm":
        return cls(**key.model_dump(exclude={"sha256"}))


class CreatedKey(Document, KeyForm):
    """The only place where the secret is ever shown."""

    secret: str


class RevokedKey(Document, KeyForm):
    """The key that was revoked."""


class KeyList(Document):
    """All keys of a file, in the order in which they were made."""

    keys: list[KeyForm]


def run(args: Sequence[str]) -> int:
    out = Output(json="--json" in args)
    if not args or args[0].startswith(("--json", "--file")):
        args = ["list", *args]
    # A union has no class of its own; to tyro it is as good as one.
    asked: Create | List | Revoke = flags.parse(Keys, args, verb="keys")  # type: ignore[arg-type]
    if isinstance(asked, Create):
        return _create(asked, out)
    if isinstance(asked, Revoke):
        gone = KeyRing.open(asked.file).revoke(asked.key)
        out.text(f"revoked {gone.name} ({gone.id})")
        out.document(RevokedKey(**KeyForm.of(gone).model_dump()))
        return 0
    return _list(asked, out)


def _create(asked: Create, out: Output) -> int:
    key, secret = KeyRing.open(asked.file, must_exist=False).create(
        asked.name,
        monthly_budget_usd=asked.monthly_budget_usd,
        requests_per_minute=asked.requests_per_minute,
        tokens_per_minute=asked.tokens_per_minute,
        max_parallel=asked.max_parallel,
    )
    out.text(f"{key.name} ({key.id}) stands in {asked.file}; its secret, shown this once:\n")
    if not out.json:  # not on stderr, which logs keep
        out.text(secret)
    out.document(CreatedKey(secret=secret, **KeyForm.of(key).model_dump()))
    return 0


def _list(asked: List, out: Output) -> int:
    keys = KeyRing.open(asked.file).keys
    table = Table("name", "id", "created", "a month", "requests/min", "tokens/min", "at once")
    table.add_column("revoked")
    for key in keys:
        budget = key.monthly_budget_usd
        table.add_row(
            key.name,
            key.id,
            _day(key.created),
            NONE if budget is None else f"${budget:g}",
            *(
                NONE if limit is None else f"{limit:,}"
                for limit in (key.requests_per_minute, key.tokens_per_minute, key.max_parallel)
            ),
            _day(key.revoked or ""),
        )
    out.text(table)
    out.document(KeyList(keys=list(map(KeyForm.of, keys))))
    return 0


def _day(time: str) -> str:
    return time.partition("T")[0]
