"""Command-line flags by tyro: a frozen class in, an instance out, errors in the words of the house."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro
from pydantic import ValidationError

from nalar.cli.lora_words import lora_of
from nalar.cli.lora_words import word_of as lora_word_of
from nalar.config import UserError
from nalar.data.config import AnySource
from nalar.data.source_words import is_source, source_of, word_of
from nalar.model.config import LoraConfig

T = TypeVar("T")

SWITCHES = ("--json", "--dry-run", "--resume", "--force")
"""Flags without a value, which may stand before the word that a verb takes off itself."""
_BOX = re.compile(r"[─-╿]|-{4,}")
_UNKNOWN = re.compile(r"Unrecognized options: (?P<flag>[^\s,]+)")
_MEANT = re.compile(r"(?:Perhaps you meant|similar).*?(?P<flag>--[\w.-]+)", re.DOTALL)
_CONFIG_ERROR = re.compile(
    r"Value error, (?P<at>\S+): got (?P<got>.*?) wanted: (?P<want>.*?)(?: try: (?P<hint>.*?))? \[type="
)
_FIELD_ERROR = re.compile(
    r"Error parsing (?:config)?\.?(?P<at>\S*): \d+ validation errors? for \w+ (?P<field>\S+) "
    r"(?P<want>.*?) \[type=\S+ input_value=(?P<got>.*?), input_type="
)
_VALUE_ERROR = re.compile(
    r"Error parsing (?P<at>--\S+): (?P<got>.*?)(?: Argument helptext:| For full)"
)
_NO_NUMBER = re.compile(
    r"(?P<kind>invalid literal for int|could not convert string to float).*?: (?P<got>.*)"
)
_MISSING_NAME = re.compile(r"\s+(?P<name>--[\w.-]+|[A-Z]{2,})\b")
"""A line that begins with a flag, or with the name of a positional argument."""
_COUNT = re.compile(
    r"(?P<flag>--\S+): no type matching .*?from \[(?P<got>.*?)\]\. Got errors: .*"
    r"expected argument count (?P<count>\d+)"
)
_NO_VALUE = re.compile(r"Missing value for argument '(?P<flag>\S+)'")
_CHOICE = re.compile(
    r"invalid choice '(?P<got>.*?)' for argument '(?P<flag>\S+)'\. Expected one of \((?P<want>.*?),?\)"
)
_NUMBERS = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
}

_KINDS = tyro.constructors.ConstructorRegistry()
"""How flags spell what is no number and no text."""


@_KINDS.primitive_rule
def _source(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[AnySource] | None:
    if info.type != AnySource:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SOURCE",
        instance_from_str=lambda words: source_of(words[0]),
        is_instance=is_source,
        str_from_instance=lambda source: [word_of(source)],
    )


@_KINDS.primitive_rule
def _lora(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[LoraConfig | None] | None:
    if info.type != LoraConfig | None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SETTINGS",
        instance_from_str=lambda words: lora_of(words[0]),
        is_instance=lambda value: value is None or isinstance(value, LoraConfig),
        str_from_instance=lambda lora: [lora_word_of(lora)],
    )


def parse(
    cls: type[T], args: Sequence[str], *, verb: str, usage: str = "", default: T | None = None
) -> T:
    """An instance of `cls` from flags. UserError on bad ones; `--help` prints and exits with 0.

    usage: words that follow the verb in the help, such as a positional argument that the verb takes off itself.
    """
    complaint = io.StringIO()
    prog = f"nalar {verb}"
    try:
        with contextlib.redirect_stderr(complaint), _KINDS:
            return tyro.cli(
                cls,
                prog=f"{prog} {usage}".strip(),
                args=list(args),
                # A part of a config that may be off is on or off by the recipe, not by a word among the flags.
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
                default=tyro.MISSING_NONPROP if default is None else default,
            )
    except ValidationError as error:
        # Of a config that has no default, and so is made by tyro itself.
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise UserError(at=at, got=repr(first["input"]), want=first["msg"]) from None
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _in_our_words(complaint.getvalue(), prog) from None


def peek(args: Sequence[str], flag: str) -> str | None:
    """The value of `flag` among unparsed words: some flags say what the defaults of the others are."""
    for i, word in enumerate(args):
        if word == flag and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def gathered(args: Sequence[str], flag: str) -> list[str]:
    """The words with all values of `flag`, which may be given more than once, behind its first place."""
    values: list[str] = []
    others: list[str] = []
    place: int | None = None
    is_value = False
    for word in args:
        if word == flag or word.startswith(f"{flag}="):
            is_value = word == flag
            place = len(others) if place is None else place
            values += [] if is_value else [word.removeprefix(f"{flag}=")]
            continue
        is_value = is_value and not word.startswith("-")
        (values if is_value else others).append(word)
    return others if place is None else [*others[:place], flag, *values, *others[place:]]


def leading_word(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """The word that stands on its own before all flags but switches, and the other words; None where there is none."""
    for i, word in enumerate(args):
        stands_alone = i == 0 or args[i - 1] in SWITCHES
        if stands_alone and not word.startswith("-"):
            return word, [*args[:i], *args[i + 1 :]]
        if word.startswith("-") and word not in SWITCHES:
            break  # from here on a bare word may be a flag's value
    return None, list(args)


def _missing(lines: Sequence[str]) -> list[str]:
    """Names of the flags and words that tyro's box lists as missing: its lines that are indented least but one."""
    named = [line for line in lines if _MISSING_NAME.match(line)]
    if not named:
        return []
    indent = min(len(line) - len(line.lstrip()) for line in named)
    return [line.split()[0] for line in named if len(line) - len(line.lstrip()) == indent]


def _in_our_words(complaint: str, prog: str) -> UserError:
    """tyro writes a box for people; a program needs where, what came, what was wanted, what to try."""
    lines = [_BOX.sub(" ", line).rstrip() for line in complaint.splitlines()]
    text = " ".join(" ".join(lines).split())
    if found := _UNKNOWN.search(text):
        meant = _MEANT.search(text)
        flag = found["flag"]
        got = f"unknown flag {flag}" if flag.startswith("-") else f"{flag!r}, which is no flag"
        want = f"a flag that `{prog} --help` lists"
        return UserError(
            at=prog, got=got, want=want, hint=meant and f"did you mean {meant['flag']}?"
        )
    if found := _CONFIG_ERROR.search(text):
        return UserError(at=found["at"], got=found["got"], want=found["want"], hint=found["hint"])
    if found := _FIELD_ERROR.search(text):
        at = ".".join(filter(None, (found["at"], found["field"])))
        return UserError(at=at, got=found["got"], want=found["want"])
    if found := _COUNT.search(text):
        return UserError(at=found["flag"], got=found["got"], want=f"{found['count']} values")
    if found := _VALUE_ERROR.search(text):
        want = f"a value of the kind that `{prog} --help` shows"
        got = found["got"]
        if number := _NO_NUMBER.fullmatch(got):
            got, want = number["got"], _NUMBERS[number["kind"]]
        return UserError(at=found["at"], got=got, want=want)
    if found := _CHOICE.search(text):
        return UserError(at=found["flag"], got=repr(found["got"]), want=f"one of {found['want']}")
    if found := _NO_VALUE.search(text):
        return UserError(at=found["flag"], got="no value", want="a value behind it")
    if text.startswith("Required options") and (names := _missing(lines)):
        return UserError(
            at=prog,
            got=f"no {', no '.join(names)}",
            want="all that it needs",
            hint=f"{prog} --help",
        )
    text = text.split(" For full helptext")[0]
    return UserError(at=prog, got=text, want=f"flags as `{prog} --help` shows them")
