"""What a run came to, as one document: built from the run's folder alone, so that it can be built again."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from nalar.config import UserError
from nalar.evals.baselines import Baselines, mean_tries
from nalar.evals.results import Estimate, Finite, HeldOut, ProbeResult, TaskResult
from nalar.model.config import ModelConfig
from nalar.model.families.registry import family_of
from nalar.model.folder import CONFIG, read_json
from nalar.plan.model import count_parameters
from nalar.run import Metric, Receipt, Run
from nalar.stats import paired_difference
from nalar.tasks.registry import SEARCHING

SCHEMA_VERSION = 1
STAGES = {"before": "evaluate_base", "after": "evaluate_final"}
"""Which stage's samples belong to which results."""
HELD_OUT = {"before": "held_out_before.json", "after": "held_out_after.json"}
"""Where fine-tuning leaves what it measured."""
SAMPLES_PER_TASK = 4
CURVE_POINTS = 400
_PLOTTABLE = 1e100
"""What is larger, or is no number, is a gap in a curve."""


class Cost(Finite):
    """What was used."""

    tokens: int
    flops: float
    """Counted by formula over forward, backward and sampling."""
    wall_s: float
    usd: float
    energy_wh: float | None
    """None: not measurable on this machine."""


class Stage(Cost):
    """One stage of the run, all its sessions added up."""

    name: str
    started_at: str


class Results(Finite):
    """By task id, over held-out problems, the same before and after."""

    before: dict[str, TaskResult]
    after: dict[str, TaskResult]


class ProbeSlice(ProbeResult):
    """The probe after one slice of pretraining."""

    slice: int


class ModelSize(Finite):
    total_params: int
    active_params: int
    """What one token passes through."""


class Hardware(Finite):
    cpu: str
    cores: int
    """That the process may use."""
    memory_bytes: int
    gpu: str | None = None
    platform: str


class Response(Finite):
    """One response of a model. Its text is the model's own: not to be trusted as markup."""

    thought: str
    answer: str
    correct: bool
    finish_reason: str
    tokens: int


class SamplePair(Finite):
    """The first response to a problem, before and after RL."""

    task: str
    prompt: str
    before: Response | None
    after: Response | None


class Curve(Finite):
    """Points of a line; y is None where there was no finite number."""

    x: list[float]
    y: list[float | None]


class Curves(Finite):
    """What the plots draw."""

    loss: Curve | None = None
    """Of pretraining, or of fine-tuning, over tokens."""
    accuracy: dict[str, Curve] = Field(default_factory=dict)
    """Of RL's own samples on train problems, over steps, by task id."""
    response_tokens: dict[str, Curve] = Field(default_factory=dict)
    reward: Curve | None = None
    """Of RL, over steps: the mean of a step's samples."""
    entropy: Curve | None = None
    """Of RL, over steps: nats of the next token, the mean of what was trained on."""


class Report(Finite):
    """`report.json`. Later versions only gain keys."""

    schema_version: int = SCHEMA_VERSION
    name: str
    recipe: str | None
    created: str
    command: str
    seed: int
    commit: str | None
    dirty: bool | None
    """Whether the code differed from the commit."""
    is_complete: bool
    """Whether the run came to its last evaluation."""
    results: Results
    held_out: dict[str, HeldOut]
    """Of fine-tuning, under `before` and `after`."""
    difference: dict[str, Estimate]
    """After less before of pass@1, paired by problem, by task id."""
    tries: dict[str, float]
    """Marked tries a response to a task that searches (Countdown), under `before` and `after`."""
    baselines: Baselines | None
    stages: list[Stage]
    total: Cost | None
    usd_per_hour: float | None
    """The price that was assumed."""
    probe: list[ProbeSlice]
    """After each slice of pretraining; the last decided."""
    model: ModelSize | None
    hardware: Hardware
    software: dict[str, str | None]
    curves: Curves
    samples: list[SamplePair]
    """The first problems of each task, not chosen by outcome."""
    config: dict[str, Any] = Field(repr=False)


def build_report(run: Run) -> Report:
    """The report of a run, finished or not. UserError where a file of the run is broken."""
    try:
        return _build(run)
    except ValidationError as error:  # what the run wrote has its forms: one of them does not fit
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "report"
        raise UserError(
            at=str(run.path),
            got=f"{first['msg'].lower()} at {place}",
            want="run.json, ledger and samples as nalar wrote them",
        ) from error


def _build(run: Run) -> Report:
    config, environment = run.info.config, run.info.environment
    results = Results(
        before=_read(run, "results_before.json", dict[str, TaskResult]) or {},
        after=_read(run, "results_after.json", dict[str, TaskResult]) or {},
    )
    rows = {when: _sample_rows(run, stage) for when, stage in STAGES.items()}
    measured = {when: _read(run, name, HeldOut) for when, name in HELD_OUT.items()}
    held_out = {when: found for when, found in measured.items() if found is not None}
    price = config.get("price")
    stages = [Stage(**vars(total)) for total in run.stage_totals()]
    return Report(
        name=run.info.name,
        recipe=config.get("recipe"),
        created=run.info.created,
        command=run.info.command,
        seed=run.info.seed,
        commit=environment.commit,
        dirty=environment.dirty,
        is_complete=bool(results.after) or "after" in held_out,
        results=results,
        held_out=held_out,
        difference=_differences(results, rows, run.info.seed),
        tries=_tries(rows),
        baselines=_read(run, "baselines.json", Baselines),
        stages=stages,
        total=_total(run.stage_totals()),
        usd_per_hour=price.get("usd_per_hour") if isinstance(price, dict) else None,
        probe=read_probe(run),
        model=_model_size(run),
        hardware=Hardware(**environment.model_dump(include=set(Hardware.model_fields))),
        software={"python": environment.python, **environment.packages},
        curves=_curves(run),
        samples=_pairs(rows),
        config=config,
    )


def read_probe(run: Run) -> list[ProbeSlice]:
    """What the probe said after each slice so far."""
    found: list[ProbeSlice] = _read(run, "probe.json", list[ProbeSlice]) or []
    return found


def _read(run: Run, name: str, form: Any) -> Any:
    """A document of the run in its form; None where the run has not written it."""
    path = run.path / name
    if not path.exists():
        return None
    try:
        return TypeAdapter(form).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        got = f"{first['msg'].lower()} at {place}"
        hint = "the stage that writes it again is done by --resume"
        raise UserError(
            at=str(path), got=got, want="a file as nalar wrote it", hint=hint
        ) from error


class _SampleRow(Response):
    task: str
    key: str
    prompt: str


def _sample_rows(run: Run, stage: str) -> list[dict[str, Any]]:
    return [_SampleRow.model_validate(row).model_dump() for row in run.samples(stage)]


def _total(stages: Sequence[Receipt]) -> Cost | None:
    if not stages:
        return None
    energies = [stage.energy_wh for stage in stages]
    known = [energy_wh for energy_wh in energies if energy_wh is not None]
    return Cost(
        tokens=sum(stage.tokens for stage in stages),
        flops=math.fsum(stage.flops for stage in stages),
        wall_s=math.fsum(stage.wall_s for stage in stages),
        usd=math.fsum(stage.usd for stage in stages),
        energy_wh=math.fsum(known) if len(known) == len(energies) else None,
    )


def _model_size(run: Run) -> ModelSize | None:
    """By the run's config, or by its latest checkpoint where it began with a model that was there."""
    model, folder = run.info.config.get("model"), run.path / "model"
    if isinstance(model, Mapping):
        config = ModelConfig.model_validate(model)
    elif (folder / CONFIG).is_file():
        published = read_json(folder / CONFIG)
        config = family_of(published).read_config(published)
    else:
        return None
    count = count_parameters(config)
    return ModelSize(total_params=count.total_params, active_params=count.active_params)


def _differences(
    results: Results, rows: Mapping[str, Sequence[Mapping[str, Any]]], seed: int
) -> dict[str, Estimate]:
    """By task, where the samples of all problems are there on both sides."""
    found = {}
    for task, result in results.before.items():
        before, after = (_by_problem(rows[when], task) for when in ("before", "after"))
        if task in results.after and len(before) == result.n and before.keys() == after.keys():
            gain = paired_difference(
                list(before.values()), [after[key] for key in before], seed=seed
            )
            found[task] = Estimate(mean=gain.mean, ci95=(gain.lo, gain.hi))
    return found


def _by_problem(rows: Sequence[Mapping[str, Any]], task: str) -> dict[str, float]:
    """Share of correct samples by problem."""
    outcomes: dict[str, list[bool]] = {}
    for row in rows:
        if row["task"] == task:
            outcomes.setdefault(row["key"], []).append(row["correct"])
    return {key: fmean(correct) for key, correct in outcomes.items()}


def _tries(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    means = {
        when: mean_tries(row["thought"] for row in side if row["task"] in SEARCHING)
        for when, side in rows.items()
    }
    return {when: mean for when, mean in means.items() if mean is not None}


def _pairs(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[SamplePair]:
    """The first few problems of each task, with the first response of each side."""
    first: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for when, side in rows.items():
        for row in side:
            first.setdefault((row["task"], row["key"]), {}).setdefault(when, row)
    by_task: dict[str, list[SamplePair]] = {}
    for (task, _), pair in first.items():
        prompt = next(iter(pair.values()))["prompt"]
        sides = {w: Response.model_validate(pair[w]) if w in pair else None for w in STAGES}
        by_task.setdefault(task, []).append(SamplePair(task=task, prompt=prompt, **sides))
    return [pair for pairs in by_task.values() for pair in pairs[:SAMPLES_PER_TASK]]


def _curves(run: Run) -> Curves:
    pretrain, rl = run.metrics("pretrain") or run.metrics("sft"), run.metrics("rl")
    keys = list(dict.fromkeys(key for metric in rl for key in metric.values))

    def by_task(kind: str) -> dict[str, Curve]:
        found = {
            key.removeprefix(f"{kind}/"): _curve(rl, key, lambda metric: metric.step)
            for key in keys
            if key.startswith(f"{kind}/")
        }
        return {task: curve for task, curve in found.items() if curve is not None}

    return Curves(
        loss=_curve(pretrain, "loss", lambda metric: metric.values.get("tokens", math.nan)),
        accuracy=by_task("accuracy"),
        response_tokens=by_task("response_tokens"),
        reward=_curve(rl, "reward", lambda metric: metric.step),
        entropy=_curve(rl, "entropy", lambda metric: metric.step),
    )


def _curve(metrics: Sequence[Metric], key: str, x: Callable[[Metric], float]) -> Curve | None:
    """At most CURVE_POINTS points: above that, each is the mean of its neighbours."""
    points = [(x(m), m.values[key]) for m in metrics if key in m.values and abs(x(m)) < _PLOTTABLE]
    if not points:
        return None
    stride = math.ceil(len(points) / CURVE_POINTS)
    xs, ys = [], []
    for start in range(0, len(points), stride):
        part = points[start : start + stride]
        finite = [y for _, y in part if abs(y) < _PLOTTABLE]
        xs.append(part[-1][0])
        ys.append(fmean(finite) if finite else None)
    return Curve(x=xs, y=ys)
