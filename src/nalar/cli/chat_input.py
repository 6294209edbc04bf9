"""Prompts as people type them: several lines between triple quotes, behind a backslash, or pasted."""

import contextlib
import itertools
import select
import sys
from collections.abc import Callable, Iterable

QUOTES = '"""'
_PASTE_S = 0.03
"""What follows a line within this time was not typed."""


def next_prompt(read: Callable[[str], str | None], has_more: Callable[[], bool]) -> str | None:
    """The next prompt, which may be blank; None where the input ends.

    read: one line without its end, given the mark to show; None at the end. has_more: whether the next line is there
    already: it then belongs to what was pasted.
    """
    line = read("> ")
    if line is None:
        return None
    if line.lstrip().startswith(QUOTES):
        return _quoted(line.lstrip()[len(QUOTES) :], read)
    lines = [line]
    while line is not None and (line.endswith("\\") or has_more()):
        lines[-1] = line.removesuffix("\\")
        line = read("… " if line.endswith("\\") else "")
        if line is not None:
            lines.append(line)
    return "\n".join(lines)


def _quoted(first: str, read: Callable[[str], str | None]) -> str:
    """Lines up to one that ends in quotes, or to the end of the input."""
    lines, line = list[str](), first
    while not line.rstrip().endswith(QUOTES):
        lines.append(line)
        more = read("… ")
        if more is None:
            return "\n".join(lines).strip("\n")
        line = more
    lines.append(line.rstrip().removesuffix(QUOTES))
    return "\n".join(lines).strip("\n")


def terminal_reader() -> Callable[[str], str | None]:
    """Lines of a terminal. None at Ctrl-D."""

    def read(mark: str) -> str | None:
        try:
            return input(mark)
        except EOFError:
            return None

    return read


def pipe_reader() -> Callable[[str], str | None]:
    """Lines of a file or a pipe, without a mark."""

    def read(_mark: str) -> str | None:
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None

    return read


def is_pasted() -> bool:
    """Whether more of the terminal's input is there than a person can have typed."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTE_S)[0])
    except (OSError, ValueError):  # no terminal to wait for
        return False


def edit_lines(words: Iterable[str]) -> None:
    """Cursor keys, earlier lines by the arrow up, `words` completed by the tabulator, where Python has readline. Lines
    are kept while the chat lasts, and in no file."""
    with contextlib.suppress(ImportError):
        import readline

        known = sorted(words)

        def complete(begun: str, nth: int) -> str | None:
            found = (word for word in known if word.startswith(begun))
            return next(itertools.islice(found, nth, None), None)

        readline.set_completer(complete)
        readline.set_completer_delims(" \t\n")
        readline.parse_and_bind("tab: complete")
