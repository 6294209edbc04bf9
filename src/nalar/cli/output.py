"""What a verb prints: text for people on stdout, or exactly one JSON document there and all text on stderr."""

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from nalar.config import UserError
from nalar.disk import encode
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

    without_reader: str | None = None
    """Said where the reader of our output goes away, and the process goes on in silence. None: it ends."""

    def on_broken_pipe(self) -> None:
        if self.without_reader is None:
            super().on_broken_pipe()
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        with contextlib.suppress(OSError):  # stderr may lead to the same reader
            print(f"nobody reads this output any more; {self.without_reader}", file=sys.stderr)

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

    def outlive_reader(self, message: str) -> None:
        """From now on a reader that goes away ends the output only, not the work; `message` says so, once."""
        self.console.without_reader = message

    def document(self, document: BaseModel) -> None:
        """The one JSON document; nothing where none was asked for."""
        if self.json:
            print(encode(document.model_dump(mode="json"), indent=2).decode(), flush=True)
