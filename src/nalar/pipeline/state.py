"""`state.json`: which stages of a run are done, how far its logs had come by then, and what a kill has cost."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nalar.config import UserError
from nalar.run import Beyond, Lost, Run, add_up

FILE = "state.json"


class Outcome(StrEnum):
    """How a session of a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """Asked to stop; everything is saved."""
    PROBE_FAILED = "probe_failed"
    """The base does not recognise its own hits, so RL would unlearn to search."""


class PendingLoss(BaseModel):
    """Work that a kill undid and that no receipt counts yet."""

    logs: dict[str, int]
    """Where the logs were cut back to: once they have grown, a receipt has counted it."""
    wall_s: float
    energy_wh: float


class State(BaseModel):
    """Only gains keys."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    done: list[str] = []
    checkpoints: dict[str, str] = {}
    """By stage that is done and that trains: the checkpoint with which it ended."""
    logs: dict[str, dict[str, int]] = {}
    """By stage: bytes of each log of the run at the stage's end."""
    lost: PendingLoss | None = None

    @classmethod
    def read(cls, run: Run) -> "State":
        """UserError where the file is not one that nalar wrote."""
        path = run.path / FILE
        if not path.exists():
            return cls()
        try:
            return cls.model_validate(run.read_json(FILE))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                at=str(path),
                got=f"{first['msg'].lower()} at {place}",
                want="a file as nalar wrote it",
            ) from error

    def write(self, run: Run) -> None:
        run.write_json(FILE, self.model_dump())

    def with_done(self, stage: str, logs: Mapping[str, int], checkpoint: str | None) -> "State":
        ended = {stage: checkpoint} if checkpoint else {}
        return self._with(
            done=[*self.done, stage],
            checkpoints=self.checkpoints | ended,
            logs=self.logs | {stage: dict(logs)},
        )

    def without(self, stage: str) -> "State":
        """As before this stage was done."""
        done = self.done[: self.done.index(stage)]
        logs = {name: position for name, position in self.logs.items() if name in done}
        checkpoints = {name: end for name, end in self.checkpoints.items() if name in done}
        return self._with(done=done, checkpoints=checkpoints, logs=logs)

    def with_lost(self, lost: Lost, logs: Mapping[str, int]) -> "State":
        pending = PendingLoss(logs=dict(logs), wall_s=lost.wall_s, energy_wh=lost.energy_wh)
        return self._with(lost=pending)

    def start_of_next(self) -> dict[str, int] | None:
        """Where the logs were when the last stage ended; None where an older nalar has not said so."""
        return self.logs.get(self.done[-1]) if self.done else {}

    def _with(self, **changes: Any) -> "State":
        return self.model_copy(update=changes)


def lost_work(run: Run, beyond: Beyond, pending: PendingLoss | None) -> Lost:
    """What is cut off with these lines was paid for all the same: its time and energy, as far as the lines say.

    pending: a loss that no receipt has counted; what was logged after it counts it too.
    """
    known = Lost(
        wall_s=_lost_of(run, beyond, "wall_s"), energy_wh=_lost_of(run, beyond, "energy_wh")
    )
    if pending is None:
        return known
    return Lost(max(known.wall_s, pending.wall_s), max(known.energy_wh, pending.energy_wh))


def _lost_of(run: Run, beyond: Beyond, key: str) -> float:
    """A receipt has what was used since the one before, a line of metrics what its stage had used until then."""
    recorded, dropped = run.stage_totals(), add_up(beyond.receipts)
    used = {total.name: getattr(total, key) or 0.0 for total in recorded}
    lost = 0.0
    for stage in {metric.stage for metric in beyond.metrics} | dropped.keys():
        until = [m.values.get(key, 0.0) for m in beyond.metrics if m.stage == stage]
        kept = used.get(stage, 0.0) - (getattr(dropped.get(stage), key, None) or 0.0)
        lost += max([used.get(stage, 0.0), *until]) - kept
    return lost
