"""A pipeline as its user sees it: a tree of stages, with the bars of the one that is under way; or plain log lines."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from nalar.cli.display import STOPPING, Display, Ledger, LogDisplay, Values, clock, figures, is_live
from nalar.evals import units
from nalar.plan.r1_stages import MEASURE, STAGES

_MARKS = {"done": ("✓", "green"), "running": ("▶", "bold cyan"), "left": ("·", "dim")}


class TreeDisplay:
    """A line a stage; under the one that is under way a bar for each part of it, and what the last step measured."""

    def __init__(
        self,
        console: Console,
        spent_usd: Mapping[str, float],
        stages: Sequence[str],
        done: Sequence[str],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = Ledger(spent_usd)
        self._stages, self._done, self._now = tuple(stages), set(done), now
        self._running: str | None = None
        self._begun: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self._figures = Text()
        self._is_stopping = False
        self._new_bars()
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=4, transient=False
        )

    def __enter__(self) -> "TreeDisplay":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def stage_started(self, stage: str, *, steps: int | None, done: int = 0) -> None:
        outer, inner = split_name(stage)
        if outer != self._running:
            self._running = outer
            self._begun.setdefault(outer, self._now())
            self._new_bars()
        self._ledger.steps, self._figures = steps, Text()
        if inner not in self._ids:
            self._ids[inner] = self._bars.add_task(inner, total=steps, left="")
        self._bars.update(self._ids[inner], total=steps, completed=done)

    def step(self, stage: str, step: int, values: Values) -> None:
        self._ledger.take(stage, values)
        left_s = self._ledger.left_s(step, values)
        left = "" if left_s is None else f"left {clock(left_s)}"
        self._bars.update(self._ids[split_name(stage)[1]], completed=step, left=left)
        line = " · ".join([*figures(values), units.money(self._ledger.usd)])
        self._figures = Text(line, style="cyan")

    def note(self, text: str) -> None:
        self._live.console.print(Text(text))

    def stage_finished(self, stage: str) -> None:
        outer, inner = split_name(stage)
        if stage == outer:  # the stage of the pipeline, not a part of it
            self._done.add(outer)
            self._took[outer] = self._now() - self._begun.get(outer, self._now())
        elif inner in self._ids:
            task = next(t for t in self._bars.tasks if t.id == self._ids[inner])
            # A part that ended early, by its own verdict, is whole: its bar says how long it was.
            total = task.completed or task.total or 1
            self._bars.update(self._ids[inner], total=total, completed=total, left="done")

    def stopping(self) -> None:
        """Called inside a signal handler: sets a flag, the next refresh shows it."""
        self._is_stopping = True

    def render(self) -> RenderableType:
        """The tree as it is now."""
        lines: list[RenderableType] = []
        for stage in self._shown():
            lines.append(self._line(stage))
            if stage == self._running:
                lines += [Padding(self._bars, (0, 0, 0, 4)), Padding(self._figures, (0, 0, 0, 4))]
        if self._is_stopping:
            lines.append(Text(STOPPING, style="bold yellow"))
        return Group(*lines)

    def _shown(self) -> list[str]:
        """A model that was given is measured too, and has no stage of its own."""
        given = [] if self._running is None else [self._running]
        return [name for name in STAGES if name in (*self._stages, *given)]

    def _line(self, stage: str) -> Text:
        is_running = stage == self._running
        state = "running" if is_running else "done" if stage in self._done else "left"
        mark, style = _MARKS[state]
        took = f"  {units.duration(self._took[stage])}" if stage in self._took else ""
        return Text.assemble(
            (f"{mark} {stage:<19}", style), (f"{STAGES[stage].title}{took}", "dim")
        )

    def _new_bars(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._ids: dict[str, TaskID] = {}


def split_name(name: str) -> tuple[str, str]:
    """The stage of a pipeline, and which part of it: `rl1/rl`, `measure_rl1`, or `rl1` itself."""
    if name.startswith(MEASURE):
        return name.removeprefix(MEASURE), "measure"
    outer, _, inner = name.partition("/")
    return outer, inner


@contextlib.contextmanager
def watch_r1(
    console: Console,
    spent_usd: Mapping[str, float],
    stages: Sequence[str],
    done: Sequence[str],
) -> Iterator[Display | TreeDisplay]:
    """The display that fits the console: a tree on a terminal, else a log."""
    if not is_live(console):
        log = LogDisplay(console, spent_usd)
        left = [name for name in stages if name not in done]
        if done:
            log.note(f"done before: {', '.join(done)}")
        if left:
            log.note(f"left: {', '.join(left)}")
        yield log
        return
    with TreeDisplay(console, spent_usd, stages, done) as tree:
        yield tree
