"""What a verb prints: text for people on stdout, or exactly one JSON document there and all text on stderr."""

import sys
from collections.abc import Iterable
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from nalar.config import UserError
from nalar.evals.text import printable

SCHEMA_VERSION = 1


class Document(BaseModel):
    """A JSON form for programs. Only gains keys."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION


class ErrorBody(BaseModel):
    """Where it went wrong, what came, what was wanted, what to try."""

    at: str
    got: str
    want: str
    hint: str | None = None

    @classmethod
    def of(cls, error: UserError) -> "ErrorBody":
        return cls(at=error.at, got=error.got, want=error.want, hint=error.hint)


class ErrorDocument(Document):
    """Printed where a verb fails before it has anything else to say."""

    error: ErrorBody


class SafeConsole(Console):
    """Whatever text comes, from a model or from a file of somebody else's run, cannot steer the terminal."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


class Output:
    """Text goes to stdout, or to stderr where a program reads stdout."""

    PLAIN_WIDTH: ClassVar[int] = 120
    """Columns where nobody says how wide the screen is: a log."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        stream = sys.stderr if json else sys.stdout
        width = None if stream.isatty() else self.PLAIN_WIDTH
        self.console = SafeConsole(
            file=stream,
            width=width,
            highlight=False,
            soft_wrap=False,
            markup=False,  # nor can a name in brackets, or between colons, be anything but text
            emoji=False,
        )

    def text(self, what: RenderableType, *, style: str | None = None) -> None:
        """Print for people. A string is printed as it is: no markup, no wrapping."""
        if isinstance(what, str):
            self.console.print(what, style=style, markup=False, soft_wrap=True)
        else:
            self.console.print(what)

    def document(self, document: BaseModel) -> None:
        """The one JSON document; nothing where none was asked for."""
        if self.json:
            print(document.model_dump_json(indent=2), flush=True)
