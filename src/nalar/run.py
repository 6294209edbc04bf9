"""A run's folder: what was asked, on which machine, what was measured, what it cost.

runs/<name>/{run.json, metrics.jsonl, ledger.jsonl, samples/<stage>.jsonl, checkpoints/, model -> a checkpoint}
"""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from nalar.config import UserError, refuse_change
from nalar.disk import (
    append_line,
    cut_back,
    decode,
    disk_errors,
    encode,
    lines_beyond,
    mend_folder,
    only_writer,
    read_lines,
    size_of,
    sync,
    write_atomic,
)
from nalar.machine import EnergyCounter, Environment, environment

T = TypeVar("T")

SCHEMA_VERSION = 1
METRICS, LEDGER = "metrics.jsonl", "ledger.jsonl"
ROLLOUTS = "rollouts"
LOGS = (METRICS, LEDGER)
"""What only grows, and is cut back where a run goes back to a checkpoint."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Receipt:
    """What a stage, or a part of one, has used. The receipts of a stage that was resumed add up."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    name: str
    tokens: int
    """Trained on in pretraining, sampled everywhere (by the probe too); prompts are not counted."""
    flops: float
    """Counted by formula, not measured."""
    wall_s: float
    usd: float
    energy_wh: float | None
    """None: not measurable on this machine."""
    started_at: str
    """ISO 8601, UTC."""

    def __add__(self, other: "Receipt") -> "Receipt":
        if other.name != self.name:
            raise ValueError(
                f"receipts of two stages do not add up: {self.name!r} and {other.name!r}"
            )
        return Receipt(
            name=self.name,
            tokens=self.tokens + other.tokens,
            flops=self.flops + other.flops,
            wall_s=self.wall_s + other.wall_s,
            usd=self.usd + other.usd,
            energy_wh=_sum(self.energy_wh, other.energy_wh),
            started_at=min(self.started_at, other.started_at),
        )


@dataclass(frozen=True)
class Spent:
    """Time and energy used since a moment."""

    started_at: str
    wall_s: float
    energy_wh: float | None


@dataclass(frozen=True)
class Lost:
    """Time and energy of work that a kill undid, as far as it was logged."""

    wall_s: float = 0.0
    energy_wh: float = 0.0


class Meter:
    """Measures wall time and CPU energy of a `with` block: `with Meter(run.stage_total("rl")) as meter: ...`.

    `lap` gives what has been used since the last lap, which is what one Receipt is made of: where a stage
    records a lap at each checkpoint, a kill costs the ledger what was used since the last one. `total` is
    everything, earlier sessions of a resumed stage included. What was lost to a kill was paid for all the same:
    it counts as used before the first lap. The energy counters wrap around after some minutes of full load: read
    `total` or `lap` at least once a minute.
    """

    def __init__(self, earlier: Receipt | None = None, lost: Lost | None = None) -> None:
        self._lost = lost or Lost()
        self._earlier = Spent(now(), 0.0, 0.0)
        if earlier is not None:
            self._earlier = Spent(earlier.started_at, earlier.wall_s, earlier.energy_wh)

    def __enter__(self) -> "Meter":
        self._energy = EnergyCounter()
        self._begun_at, self._begun_s = now(), time.perf_counter()
        self._ended_s: float | None = None
        self._lap = Spent(self._begun_at, 0.0, self._energy.read_wh())
        return self

    def __exit__(self, *_: object) -> None:
        self._energy.read_wh()
        self._ended_s = time.perf_counter()

    @property
    def total(self) -> Spent:
        """Since the stage first started."""
        here, before = self._session(), self._earlier
        energy_wh = _sum(before.energy_wh, here.energy_wh)
        return Spent(before.started_at, before.wall_s + here.wall_s, energy_wh)

    def lap(self) -> Spent:
        """Since the last lap, or since the block was entered."""
        here, last = self._session(), self._lap
        self._lap = Spent(now(), here.wall_s, here.energy_wh)
        energy_wh = _sum(here.energy_wh, None if last.energy_wh is None else -last.energy_wh)
        return Spent(last.started_at, here.wall_s - last.wall_s, energy_wh)

    def _session(self) -> Spent:
        is_over = self._ended_s is not None
        now_s = self._ended_s if self._ended_s is not None else time.perf_counter()
        energy_wh = self._energy.used_wh if is_over else self._energy.read_wh()
        return Spent(
            self._begun_at,
            self._lost.wall_s + now_s - self._begun_s,
            _sum(self._lost.energy_wh, energy_wh),
        )


def _sum(one: float | None, other: float | None) -> float | None:
    """None, not a part of the truth, where either is unknown."""
    return None if one is None or other is None else one + other


def now() -> str:
    """The time as every file of a run writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunInfo(BaseModel):
    """`run.json`, which makes a folder a run. Only gains keys; unknown ones are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    name: str
    command: str
    seed: int
    config: dict[str, Any]
    environment: Environment
    created: str


@dataclass(frozen=True)
class Metric:
    """What was logged at one step of one stage. A value that was not finite reads back as nan."""

    stage: str
    step: int
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Beyond:
    """What a run's logs gained after a moment."""

    metrics: list[Metric]
    receipts: list[Receipt]


@dataclass(frozen=True)
class _MetricLine:
    stage: str
    step: int
    values: dict[str, float | None]

    def numbers(self) -> dict[str, float]:
        return {key: math.nan if value is None else value for key, value in self.values.items()}


_RECEIPT, _METRIC = TypeAdapter(Receipt), TypeAdapter(_MetricLine)


@dataclass(frozen=True)
class Run:
    """One run's folder. Make it by `create` or `open`; one process at a time may write."""

    path: Path
    info: RunInfo

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        config: dict[str, Any],
        command: str,
        seed: int,
        *,
        resume: bool = False,
    ) -> "Run":
        """A new run under `root`; with `resume`, the run that is there, which must have the same config and seed."""
        path = root / _plain(name, at="run name")
        if resume:
            run = cls.open(path)
            asked = {"seed": seed, **json.loads(encode(config))}
            refuse_change(asked, {"seed": run.info.seed, **run.info.config}, at=path)
            return run
        info = RunInfo(
            name=name,
            command=command,
            seed=seed,
            config=json.loads(encode(config)),  # as it will read back: lists, not tuples
            environment=environment(),
            created=now(),
        )
        run = cls(path, info)
        refuse_occupied(path)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        with only_writer(path):  # two that start at once: the second sees the first one's run.json
            refuse_occupied(path)
            run.write_json("run.json", info.model_dump())
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """The run in a folder; UserError where it is none."""
        document = _read_document(
            path / "run.json", hint="`nalar runs list` shows the runs there are"
        )
        version = document.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UserError(
                at=str(path),
                got=f"a run of schema version {version}",
                want=f"version {SCHEMA_VERSION} or older",
                hint="open it with the nalar that wrote it, or a newer one",
            )
        try:
            return cls(path, RunInfo.model_validate(document))
        except ValidationError as error:
            raise UserError(
                at=str(path / "run.json"),
                got=f"{error.error_count()} bad fields: {error.errors()[0]['loc']}",
                want="a run.json as nalar writes it",
            ) from error

    def log_metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log a step. Steps of a stage only go up; calls for one step are merged."""
        numbers = {key: float(value) for key, value in values.items()}
        append_line(self.path / METRICS, {"stage": stage, "step": step, "values": numbers})

    def metrics(self, stage: str) -> list[Metric]:
        """What was logged, in order of steps. Where a resume went back, only what was logged after it counts."""
        found: list[Metric] = []
        for record in _typed_lines(self.path / METRICS, _METRIC):
            if record.stage != stage:
                continue
            step, rewound = record.step, False
            values = record.numbers()
            while found and found[-1].step > step:
                found.pop()
                rewound = True
            if found and found[-1].step == step:
                earlier = found.pop().values
                values = values if rewound else earlier | values
            found.append(Metric(stage, step, values))
        return found

    def record(self, receipt: Receipt) -> None:
        """Add to the ledger."""
        append_line(self.path / LEDGER, asdict(receipt), durable=True)

    def ledger(self) -> list[Receipt]:
        """All receipts, as recorded. Unknown keys of later versions are ignored."""
        return _typed_lines(self.path / LEDGER, _RECEIPT)

    def stage_totals(self) -> list[Receipt]:
        """One receipt a stage, its parts added up, in the order in which stages first appear."""
        return list(add_up(self.ledger()).values())

    def stage_total(self, name: str) -> Receipt | None:
        """What a stage has used over all its sessions; None where it has not been recorded."""
        return next((total for total in self.stage_totals() if total.name == name), None)

    def log_bytes(self) -> dict[str, int]:
        """How far the logs have come: what `beyond` and `cut_back` take."""
        return {name: size_of(self.path / name) for name in LOGS}

    def sync_logs(self) -> None:
        """Flush what was logged: a checkpoint that names a position in the logs outlives a power cut with it."""
        for name in LOGS:
            if (self.path / name).exists():
                sync(self.path / name)

    def beyond(self, position: Mapping[str, int]) -> Beyond:
        """What was logged after `log_bytes` gave this; UserError where the logs were changed since."""
        metrics = lines_beyond(self.path / METRICS, position.get(METRICS, 0))
        receipts = lines_beyond(self.path / LEDGER, position.get(LEDGER, 0))
        lines = _of_form(metrics, _METRIC)
        return Beyond(
            [Metric(line.stage, line.step, line.numbers()) for line in lines],
            _of_form(receipts, _RECEIPT),
        )

    def cut_back(self, position: Mapping[str, int]) -> None:
        """Drop what `beyond` shows, for good."""
        for name in LOGS:
            cut_back(self.path / name, position.get(name, 0))

    def mend(self) -> None:
        """Clear away what a killed process left half-written. For the run's only writer."""
        for name in (".", "samples", "checkpoints", ROLLOUTS):
            mend_folder(self.path / name)

    def write_samples(self, stage: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the samples of a stage."""
        lines = [encode(dict(row)) + b"\n" for row in rows]
        write_atomic(self._samples_path(stage), b"".join(lines))

    def samples(self, stage: str) -> list[dict[str, Any]]:
        return read_lines(self._samples_path(stage))

    def write_json(self, name: str, value: object) -> None:
        """Replace a document of the run, such as `report.json`."""
        self.write_text(name, encode(value, indent=2).decode() + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """A document of the run; UserError where it is missing or broken."""
        return _read_document(self.path / _plain(name, at="file name"), hint=None)

    def write_text(self, name: str, text: str) -> None:
        """Replace a text of the run, such as `report.html`."""
        write_atomic(
            self.path / _plain(name, at="file name"), text.encode("utf-8", "backslashreplace")
        )

    def checkpoint_dir(self, name: str) -> Path:
        """Where a checkpoint of this name lies or is to lie; write it through `replace_dir`."""
        return self.path / "checkpoints" / _plain(name, at="checkpoint name")

    def point_model_to(self, checkpoint: Path) -> None:
        """Make `model` a relative link to a checkpoint of this run, so that the folder can be moved."""
        target, link = checkpoint.resolve(), self.path / "model"
        if link.is_symlink() and link.resolve() == target:
            return
        if not target.is_dir() or not target.is_relative_to(self.path.resolve()):
            raise ValueError(f"not a checkpoint inside {self.path}: {checkpoint}")
        if link.exists() and not link.is_symlink():
            raise UserError(
                at=str(link),
                got="a file or folder",
                want="a link made by nalar",
                hint="move it away",
            )
        temp = self.path / f".model.{os.getpid()}.tmp"
        with disk_errors(link):
            temp.unlink(missing_ok=True)
            temp.symlink_to(target.relative_to(self.path.resolve()))
            temp.replace(link)
            sync(self.path)

    def model_dir(self) -> Path:
        """The latest checkpoint; UserError where the run has not written one."""
        link = self.path / "model"
        if not link.is_dir():
            hint = f"where it stopped early, its verb goes on with it: --run {self.path} --resume"
            raise UserError(at=str(link), got="nothing", want="a checkpoint", hint=hint)
        return link

    def _samples_path(self, stage: str) -> Path:
        return self.path / "samples" / f"{_plain(stage, at='stage name')}.jsonl"


def add_up(receipts: Iterable[Receipt]) -> dict[str, Receipt]:
    """One receipt a stage, by its name, in the order in which stages first appear."""
    totals: dict[str, Receipt] = {}
    for receipt in receipts:
        before = totals.get(receipt.name)
        totals[receipt.name] = receipt if before is None else before + receipt
    return totals


def _typed_lines(path: Path, form: TypeAdapter[T]) -> list[T]:
    """The records of a log in their form; UserError where one has another."""
    records = []
    for record in read_lines(path):
        try:
            records.append(form.validate_python(record))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                at=f"{path}, record {len(records) + 1}",
                got=f"{first['msg'].lower()} at {place}",
                want="a line as nalar wrote it",
                hint="delete that line",
            ) from error
    return records


def _of_form(records: Iterable[dict[str, Any]], form: TypeAdapter[T]) -> list[T]:
    """Those of the records that have the form."""
    found = []
    for record in records:
        with contextlib.suppress(ValidationError):
            found.append(form.validate_python(record))
    return found


def run_folders(root: Path) -> list[Path]:
    """The runs under `root`, by name."""
    return sorted(path.parent for path in root.glob("*/run.json"))


def _plain(name: str, *, at: str) -> str:
    """The name, if it can be that of one file and nothing more."""
    if _PLAIN.fullmatch(name):
        return name
    want = "letters, digits, '.', '_' and '-', with a letter or a digit first"
    raise UserError(at=at, got=repr(name), want=want)


def _read_document(path: Path, *, hint: str | None) -> dict[str, Any]:
    try:
        document = decode(path.read_bytes())
    except OSError as error:
        got = "nothing" if isinstance(error, FileNotFoundError) else error.strerror or "an error"
        want = (
            "a run's folder, which has a run.json"
            if path.name == "run.json"
            else "a file that a run has written"
        )
        raise UserError(at=str(path), got=got, want=want, hint=hint) from error
    if document is None:
        raise UserError(
            at=str(path), got="text that is not a JSON object", want="a file as nalar wrote it"
        )
    return document


def refuse_occupied(path: Path) -> None:
    """UserError where a new run would meet something at its place."""
    if (path / "run.json").exists():
        raise UserError(
            at=str(path),
            got="a run already",
            want="a free name",
            hint=f"--run {path} --resume goes on with it; --run NAME chooses another",
        )
    # What a kill left of a first run.json does not count.
    if path.exists() and (
        not path.is_dir() or any(not entry.match(".run.json.*.tmp") for entry in path.iterdir())
    ):
        raise UserError(
            at=str(path),
            got="files that are not a run",
            want="a free name or an empty folder",
            hint="--run NAME chooses another; nalar does not write into what is not its own",
        )
