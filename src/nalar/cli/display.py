"""A run as its user sees it: live bars on a terminal, plain log lines anywhere else. Both are Observers."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from nalar.evals import units

Values = Mapping[str, float]

LOG_EVERY_S = 10.0
LOG_EVERY_STEPS = 25
STOPPING = "stopping after this step; once more (Ctrl-C) to stop at once"

_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "loss", "{:.3f}".format),
    ("reward", "reward", "{:.3f}".format),
    ("accuracy/", "", "{:.0%}".format),
    ("right_frac", "right", "{:.0%}".format),
    ("preference_score", "preferred", "{:.2f}".format),
    ("safety_score", "safe", "{:.2f}".format),
    ("tools/called_frac", "calls", "{:.0%}".format),
    ("response_tokens/", "length", "{:.0f}".format),
    ("self_check_frac", "self-check", "{:.0%}".format),
    ("tokens_per_s", "tok/s", lambda v: f"{v:,.0f}"),
    ("mfu_frac", "MFU", "{:.1%}".format),
    ("max_load_frac", "busiest expert", "{:.1f}×".format),
    ("idle_experts", "idle experts", "{:.0f}".format),
    ("skipped_steps", "skipped", "{:.0f}".format),
    ("skipped_updates", "skipped", "{:.0f}".format),
    ("spike_score", "spikes", "{:.1%}".format),
)
"""Key, label and form of what a step shows, in order. A stage shows those that it has. A key that ends in / has a value
a task: without a label each stands by the task's name, with one they stand side by side."""
_ONLY_WHERE_ABOVE_0 = {"idle_experts", "skipped_steps", "skipped_updates", "spike_score"}


class Ledger:
    """Time left and money so far, from the values that stages report."""

    def __init__(self, spent_usd: Mapping[str, float]) -> None:
        """spent_usd: by stage, what earlier sessions of a resumed run recorded."""
        self._usd = dict(spent_usd)
        self.steps: int | None = None

    def take(self, stage: str, values: Values) -> None:
        # A stage's own figure counts from its start, earlier sessions included.
        self._usd[stage] = values.get("usd", self._usd.get(stage, 0.0))

    @property
    def usd(self) -> float:
        return sum(self._usd.values())

    def left_s(self, step: int, values: Values) -> float | None:
        """None where the stage does not know how many steps it has."""
        if self.steps is None or step <= 0 or "wall_s" not in values:
            return None
        return max(self.steps - step, 0) * values["wall_s"] / step


def figures(values: Values) -> list[str]:
    """The shown figures of a step, each with its label."""
    return [figure for key, label, form in _SHOWN for figure in _figures(values, key, label, form)]


def _figures(values: Values, key: str, label: str, form: Callable[[float], str]) -> Iterable[str]:
    if key.endswith("/"):
        found = {
            name.removeprefix(key): form(v) for name, v in values.items() if name.startswith(key)
        }
        if label and found:
            yield f"{label} {'/'.join(found.values())}"
        elif not label:
            yield from (f"{task.replace('_', ' ')} {value}" for task, value in found.items())
    elif key in values and (values[key] > 0 or key not in _ONLY_WHERE_ABOVE_0):
        yield f"{label} {form(values[key])}"


def clock(seconds: float) -> str:
    """Seconds as 1:23 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class LogDisplay:
    """A line every so often, with no control codes: for files, pipes and the lab's log collector."""

    def __init__(
        self,
        console: Console,
        spent_usd: Mapping[str, float],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._now, self._ledger = console, now, Ledger(spent_usd)
        self._begun = self._last = now()
        self._last_step = 0

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        self._ledger.steps, self._last_step, self._last = steps, done, self._now()
        length = f", {steps} step{'s' if steps > 1 else ''}" if steps else ""
        self._line(f"{stage}: {f'goes on after step {done}' if done else 'starts'}{length}")

    def step(self, stage: str, step: int, values: Values) -> None:
        self._ledger.take(stage, values)
        is_last = step == self._ledger.steps
        waited = self._now() - self._last >= LOG_EVERY_S
        if not (is_last or waited or step - self._last_step >= LOG_EVERY_STEPS):
            return
        self._last, self._last_step = self._now(), step
        total = f"/{self._ledger.steps}" if self._ledger.steps else ""
        parts = [f"{stage} {step}{total}", *figures(values)]
        left_s = self._ledger.left_s(step, values)
        if left_s:
            parts.append(f"left {clock(left_s)}")
        self._line(" · ".join([*parts, units.money(self._ledger.usd)]))

    def note(self, text: str) -> None:
        self._line(text)

    def stage_finished(self, stage: str) -> None:
        self._line(f"{stage}: done")

    def stopping(self) -> None:
        """Called inside a signal handler: the file's own buffer may be half-way through a line."""
        with contextlib.suppress(OSError, ValueError):  # nobody there to read it: stop all the same
            os.write(sys.stderr.fileno(), f"\n{STOPPING}\n".encode())

    def _line(self, text: str) -> None:
        stamp = clock(self._now() - self._begun)
        self._console.print(f"[{stamp}] {text}", markup=False, soft_wrap=True)
        self._console.file.flush()


class LiveDisplay:
    """A bar for each stage, and under it what the last step measured."""

    def __init__(self, console: Console, spent_usd: Mapping[str, float]) -> None:
        self._ledger = Ledger(spent_usd)
        self._bars = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._ids: dict[str, TaskID] = {}
        self._figures = Text()
        self._is_stopping = False
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=4, transient=False
        )

    def __enter__(self) -> "LiveDisplay":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        self._ledger.steps = steps
        self._figures = Text()
        if stage not in self._ids:
            self._ids[stage] = self._bars.add_task(stage, total=steps, left="")
        self._bars.update(self._ids[stage], total=steps, completed=done)

    def step(self, stage: str, step: int, values: Values) -> None:
        self._ledger.take(stage, values)
        left_s = self._ledger.left_s(step, values)
        left = "" if left_s is None else f"left {clock(left_s)}"
        self._bars.update(self._ids[stage], completed=step, left=left)
        line = " · ".join([*figures(values), units.money(self._ledger.usd)])
        self._figures = Text(line, style="cyan")

    def note(self, text: str) -> None:
        self._live.console.print(Text(text))

    def stage_finished(self, stage: str) -> None:
        task = next(t for t in self._bars.tasks if t.id == self._ids[stage])
        total = task.total if task.total is not None else max(task.completed, 1)
        # A stage that ended early, by its own verdict, is whole: its bar says how long it was.
        total = task.completed or total
        self._bars.update(self._ids[stage], total=total, completed=total, left="done")

    def stopping(self) -> None:
        """Called inside a signal handler: sets a flag, the next refresh shows it."""
        self._is_stopping = True

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = [self._bars, self._figures]
        if self._is_stopping:
            lines.append(Text(STOPPING, style="bold yellow"))
        return Group(*lines)


Display = LogDisplay | LiveDisplay


@contextlib.contextmanager
def watch(console: Console, spent_usd: Mapping[str, float]) -> Iterator[Display]:
    """The display that fits the console: live on a terminal, else a log."""
    if not is_live(console):
        yield LogDisplay(console, spent_usd)
        return
    with LiveDisplay(console, spent_usd) as live:
        yield live


def is_live(console: Console) -> bool:
    """Whether bars can move. FORCE_COLOR makes a console call a pipe a terminal: it takes a real one."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal
