"""The tasks that a word on the command line can mean: `countdown,num_numbers=4`, `problems.jsonl`, `my_task.py`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from nalar.config import Config, UserError, lookup
from nalar.tasks import config as settings
from nalar.tasks.arithmetic import Arithmetic
from nalar.tasks.calendar import Calendar
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.check import refuse_bad_task
from nalar.tasks.countdown import Countdown
from nalar.tasks.graph import GraphPath
from nalar.tasks.grid import LogicGrid
from nalar.tasks.linear import Linear
from nalar.tasks.own import OwnTask, OwnTaskConfig
from nalar.tasks.problem import Task
from nalar.tasks.programs import Programs
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
    "sorting": Entry(Sorting, settings.SortingConfig),
    "strings": Entry(Strings, settings.StringsConfig),
    "units": Entry(Units, settings.UnitsConfig),
    "calendar": Entry(Calendar, settings.CalendarConfig),
    "programs": Entry(Programs, settings.ProgramsConfig),
}
"""By task id."""

SEARCHING = frozenset({Countdown.id})
"""Ids of the tasks whose thoughts are marked tries."""


def open_task(word: str, *, at: str) -> Task:
    """The task that a word means: an id or a file, and after it `,name=value` for settings that are not the usual ones.

    at: where the word stood, for errors. UserError names the setting that cannot be, or shows what a file has wrong.
    A `.py` file is the code of whoever wrote the word, and is run.
    """
    name, *given = word.split(",")
    where = f"{at} {word!r}"
    if name.endswith(".jsonl"):
        text = TextProblems(_config(TextConfig, [f"path={name}", *given], at=where))
        refuse_bad_task(text, text.splits)
        return text
    if name.endswith(".py"):
        own = OwnTask(_config(OwnTaskConfig, [f"path={name}", *given], at=where))
        refuse_bad_task(own)
        return own
    task_id, config = settings_of(word, at=at)
    return FAMILIES[task_id].make(config)


def settings_of(word: str, *, at: str) -> tuple[str, Config]:
    """The id of a family and its settings, as a word says them; UserError as in `open_task`."""
    name, *given = word.split(",")
    family = lookup(name, FAMILIES, at=at)
    return name, _config(family.config, given, at=f"{at} {word!r}")


C = TypeVar("C", bound=Config)


def _config(cls: type[C], words: list[str], *, at: str) -> C:
    known = {name: name for name in cls.model_fields}
    given: dict[str, str] = {}
    for setting in words:
        name, sign, value = setting.partition("=")
        if not sign or not value:
            raise UserError(at=at, got=repr(setting), want="name=value after each comma")
        given[lookup(name, known, at=at)] = value
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(at=at, got=f"{field}={given.get(field)}", want=first["msg"]) from error
