"""The tasks that a word on the command line can mean: `countdown,num_numbers=4`, `problems.jsonl`, `my_task.py`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from nalar.config import Config, UserError, lookup
from nalar.tasks import config as settings
from nalar.tasks.arithmetic import Arithmetic
from nalar.tasks.calendar import Calendar
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.check import refuse_bad_task
from nalar.tasks.countdown import Countdown
from nalar.tasks.general import General
from nalar.tasks.graph import GraphPath
from nalar.tasks.grid import LogicGrid
from nalar.tasks.gym import PREFIX, open_gym
from nalar.tasks.hailstone import Hailstone
from nalar.tasks.levels import leveled, spread
from nalar.tasks.linear import Linear
from nalar.tasks.own import OwnTask, OwnTaskConfig
from nalar.tasks.problem import Task
from nalar.tasks.programs import Programs
from nalar.tasks.safety import Safety
from nalar.tasks.sequence import NumberSequence
from nalar.tasks.sorting import Sorting
from nalar.tasks.strings import Strings
from nalar.tasks.text import TextConfig, TextProblems
from nalar.tasks.units import Units


class Entry(NamedTuple):
    """A task and the settings that make it harder or easier."""

    make: Callable[[Any], Task]
    config: type[Config]


FAMILIES: Mapping[str, Entry] = {
    "countdown": Entry(Countdown, settings.CountdownConfig),
    "chain_sum": Entry(ChainSum, settings.ChainSumConfig),
    "arithmetic": Entry(Arithmetic, settings.ArithmeticConfig),
    "linear": Entry(Linear, settings.LinearConfig),
    "sequence": Entry(NumberSequence, settings.SequenceConfig),
    "graph": Entry(GraphPath, settings.GraphConfig),
    "grid": Entry(LogicGrid, settings.GridConfig),
    "hailstone": Entry(Hailstone, settings.HailstoneConfig),
    "sorting": Entry(Sorting, settings.SortingConfig),
    "strings": Entry(Strings, settings.StringsConfig),
    "units": Entry(Units, settings.UnitsConfig),
    "calendar": Entry(Calendar, settings.CalendarConfig),
    "programs": Entry(Programs, settings.ProgramsConfig),
    "general": Entry(General, settings.GeneralConfig),
    "safety": Entry(Safety, settings.SafetyConfig),
}
"""By task id."""

SEARCHING = frozenset({Countdown.id})
"""Ids of the tasks whose thoughts are marked tries."""


def refuse_unknown_task(word: str, *, at: str) -> None:
    """ConfigError that names the nearest where a word cannot mean a task. Files and settings are not looked at."""
    name = word.partition(",")[0]
    if not is_file(name):
        lookup(name, FAMILIES, at=at)


def is_file(name: str) -> bool:
    """Whether a word without its settings names a file, of problems or with a task."""
    return name.endswith((".jsonl", ".py"))


def id_of(word: str) -> str:
    """The id of the task that a word means: its own, the file's name, or what `name=` says."""
    name, *settings = word.split(",")
    given = dict(setting.partition("=")[::2] for setting in settings)
    return given.get("name") or (Path(name).stem if is_file(name) else name)


def open_task(word: str, *, at: str) -> Task:
    """The task that a word means: an id or a file, and after it `,name=value` for settings that are not the usual ones.

    A value such as `3..6` makes levels of a family (`tasks/levels.py`).
    at: where the word stood, for errors. UserError names the setting that cannot be, or shows what a file has wrong.
    A `.py` file is the code of whoever wrote the word, and is run.
    """
    name, *given = word.split(",")
    where = f"{at} {word!r}"
    if name.endswith(".jsonl"):
        text = TextProblems(
            _config(TextConfig, {"path": name} | _settings(TextConfig, given, where), where)
        )
        refuse_bad_task(text, text.splits)
        return text
    if name.endswith(".py"):
        own = OwnTask(
            _config(OwnTaskConfig, {"path": name} | _settings(OwnTaskConfig, given, where), where)
        )
        refuse_bad_task(own)
        return own
    if name.startswith(PREFIX):
        return _gym(name, _named(given, where), where)
    family = lookup(name, FAMILIES, at=at)
    rows = spread(_settings(family.config, given, where), at=where)
    return leveled(lambda row: family.make(_config(family.config, row, where)), rows)


def settings_of(word: str, *, at: str) -> tuple[str, Config]:
    """The id of a family and its settings, as a word without levels says them; UserError as in `open_task`."""
    name, *given = word.split(",")
    where = f"{at} {word!r}"
    family = lookup(name, FAMILIES, at=at)
    return name, _config(family.config, _settings(family.config, given, where), where)


C = TypeVar("C", bound=Config)


def _named(words: list[str], at: str) -> dict[str, str]:
    """`name=value` of each word."""
    given: dict[str, str] = {}
    for setting in words:
        name, sign, value = setting.partition("=")
        if not sign or not value:
            raise UserError(at=at, got=repr(setting), want="name=value after each comma")
        given[name] = value
    return given


def _settings(cls: type[Config], words: list[str], at: str) -> dict[str, str]:
    """What was given, by the name of its field."""
    known = {name: name for name in cls.model_fields}
    return {lookup(name, known, at=at): value for name, value in _named(words, at).items()}


def _gym(name: str, given: Mapping[str, str], at: str) -> Task:
    """Checked like a file: who makes its problems is not in our hands."""
    rows = spread(given, at=at)
    task = leveled(lambda row: open_gym(name, row, at=at), rows)
    refuse_bad_task(task)
    return task


def _config(cls: type[C], given: Mapping[str, str], at: str) -> C:
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(at=at, got=f"{field}={given.get(field)}", want=first["msg"]) from error
