"""The base class of every config, and errors that tell a user where, what came, what was wanted and what to do."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Config(BaseModel):
    """A frozen config that refuses unknown keys. Units stand in field names; `None` means off."""

    model_config = ConfigDict(
        defer_build=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )


class UserError(Exception):
    """Bad input from a user. The command line prints it without a traceback and exits with 2."""

    def __init__(self, *, at: str, got: str, want: str, hint: str | None = None) -> None:
        self.at, self.got, self.want, self.hint = at, got, want, hint
        lines = [f"{at}: got {got}", f"  wanted: {want}"]
        if hint:
            lines.append(f"  try: {hint}")
        super().__init__("\n".join(lines))


class ConfigError(UserError):
    """A config that cannot work, whether by one field or by two that disagree."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling, or None where nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def lookup(name: str, known: Mapping[str, T], *, at: str) -> T:
    """`known[name]`, or a ConfigError that lists what is known and names the nearest."""
    if name in known:
        return known[name]
    close = nearest(name, known)
    raise ConfigError(
        at=at,
        got=repr(name),
        want="one of " + ", ".join(sorted(known)),
        hint=close and f"did you mean {close!r}?",
    )


def refuse_change(asked: Mapping[str, Any], made: Mapping[str, Any], *, at: object) -> None:
    """ConfigError that names the first field in which a config differs from the one that a run was `made` with.

    Both as JSON documents.
    """
    changes = list(_changes(asked, made))
    if not changes:
        return
    name, came, had = changes[0]
    others = ", ".join(other for other, *_ in changes[1:])
    raise ConfigError(
        at=f"{at}: {name}",
        got=came + (f" (others differ too: {others})" if others else ""),
        want=f"{had}, which the run was started with",
        hint="resume without changing it, or start a run of another name by --run",
    )


def _changes(
    asked: Mapping[str, Any], made: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Dotted name, what came, what the run has: of each field that differs, in the order of `asked`."""
    for key in dict.fromkeys([*asked, *made]):
        came, had = asked.get(key), made.get(key)
        if isinstance(came, Mapping) and isinstance(had, Mapping):
            yield from _changes(came, had, f"{prefix}{key}.")
        elif came != had or (key in asked) != (key in made):
            shown = [json.dumps(d[key]) if key in d else "nothing" for d in (asked, made)]
            yield prefix + key, shown[0], shown[1]
