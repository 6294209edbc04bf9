"""The base class of every config, and errors that tell a user where, what came, what was wanted and what to do."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class Config(BaseModel):
    """A frozen config that refuses unknown keys. Units stand in field names; `None` means off."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
