"""What a pipeline came to, as one document: built from its folder alone, finished or not, and so as often as wanted."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nalar.config import UserError
from nalar.disk import read_lines
from nalar.evals.r1_results import ModelResult
from nalar.evals.report import Cost, Hardware, Response
from nalar.evals.results import Finite
from nalar.plan.r1_stages import DATASET, FOLDER, MEASURE, ON_TOP, STAGES, Row
from nalar.run import Receipt, Run

SCHEMA_VERSION = 1
SAMPLES_PER_TASK = 3
JSON = "r1.json"


class StageReceipt(Cost):
    """What a stage has used, all that its own run did added up; `measure` is all measuring together."""

    name: str
    title: str
    row: Row | None
    """Of R1's cost table; None: measuring, which is not in it."""
    is_done: bool


class DataReport(Finite):
    """What a stage that makes data has kept."""

    dialogues: int
    origins: dict[str, int]
    """Counted over the dialogues themselves: `self`, `procedural`, `file:NAME`, `judge:MODEL`."""
    collected: dict[str, Any]
    """collect.json: what was sampled and why it was dropped."""


class SideBySide(Finite):
    """One held-out problem, and the first response of each model to it."""

    task: str
    prompt: str
    responses: dict[str, Response]
    """By the model's name, in the order in which they were made."""


class R1Report(Finite):
    """`r1.json`. Later versions only gain keys."""

    schema_version: int = SCHEMA_VERSION
    name: str
    recipe: str
    created: str
    command: str
    seed: int
    commit: str | None
    dirty: bool | None
    is_complete: bool
    """Whether every stage that is on is done, and its model measured."""
    models: dict[str, ModelResult]
    """By the name of the model (base, zero, dev1, dev2, dev3, final, ...), in the order in which they are made."""
    stages: list[StageReceipt]
    """Those that have used anything, in their order."""
    on_top_of_base: Cost
    """As R1's cost table adds up: R1-Zero, the making of data, R1; without the base and distillation."""
    total: Cost
    usd_per_hour: float | None
    """The price that was assumed."""
    data: dict[str, DataReport]
    """By stage."""
    provenance: str
    """Where the dialogues come from that the models were fine-tuned on, in a sentence."""
    reward_models: dict[str, dict[str, Any]]
    """By stage: reward.json."""
    samples: list[SideBySide]
    """The first held-out problems of each task, not chosen by outcome."""
    hardware: Hardware
    software: dict[str, str | None]
    config: dict[str, Any]


def build_r1(run: Run) -> R1Report:
    """The report of a pipeline, finished or not. UserError where a file of it is broken."""
    config, environment = run.info.config, run.info.environment
    models, receipts = _models(run), stage_receipts(run)
    data = {name: found for name in STAGES if (found := _data(run, name)) is not None}
    price = config.get("price")
    return R1Report(
        name=run.info.name,
        recipe=str(config.get("recipe")),
        created=run.info.created,
        command=run.info.command,
        seed=run.info.seed,
        commit=environment.commit,
        dirty=environment.dirty,
        is_complete=_is_complete(run, receipts),
        models=models,
        stages=receipts,
        on_top_of_base=added(r for r in receipts if r.row in ON_TOP),
        total=added(receipts),
        usd_per_hour=price.get("usd_per_hour") if isinstance(price, dict) else None,
        data=data,
        provenance=provenance(data),
        reward_models=_reward_models(run),
        samples=_samples(run),
        hardware=Hardware(**environment.model_dump(include=set(Hardware.model_fields))),
        software={"python": environment.python, **environment.packages},
        config=config,
    )


def stage_runs(run: Run) -> dict[str, Run]:
    """The runs of a pipeline's stages that have begun, in their order."""
    paths = {name: run.path / FOLDER / name for name in STAGES}
    return {name: Run.open(path) for name, path in paths.items() if (path / "run.json").is_file()}


def stage_receipts(run: Run) -> list[StageReceipt]:
    """One a stage that has used anything, in their order, and one for all measuring."""
    found = []
    for name, own in stage_runs(run).items():
        stage, used = STAGES[name], added(own.ledger())
        found.append(
            StageReceipt(
                name=name,
                title=stage.title,
                row=stage.row,
                is_done=_is_done(name, own),
                **dict(used),
            )
        )
    measured = [receipt for receipt in run.ledger() if receipt.name.startswith(MEASURE)]
    if measured:
        found.append(
            StageReceipt(
                name="measure", title="Measuring", row=None, is_done=True, **dict(added(measured))
            )
        )
    return found


def added(receipts: Iterable[Receipt | Cost]) -> Cost:
    """All of them together; the energy is None where that of one is not known."""
    every = list(receipts)
    energies = [receipt.energy_wh for receipt in every]
    known = [energy_wh for energy_wh in energies if energy_wh is not None]
    return Cost(
        tokens=sum(receipt.tokens for receipt in every),
        flops=math.fsum(receipt.flops for receipt in every),
        wall_s=math.fsum(receipt.wall_s for receipt in every),
        usd=math.fsum(receipt.usd for receipt in every),
        energy_wh=math.fsum(known) if len(known) == len(energies) else None,
    )


def provenance(data: Mapping[str, DataReport]) -> str:
    """A sentence derived from the origin of each dialogue; it claims nothing that they do not say."""
    counts: Counter[str] = Counter()
    for report in data.values():
        counts.update(report.origins)
    total = sum(counts.values())
    if not total:
        return "No dialogue has been collected."
    kinds: dict[str, int] = {}
    for origin, count in counts.items():
        kinds[_kind(origin)] = kinds.get(_kind(origin), 0) + count
    said = [
        words.format(f"{kinds[kind]:,}", ", ".join(_names(counts, kind)))
        for kind, words in _ORIGINS.items()
        if kind in kinds
    ]
    sentence = f"Of the {total:,} dialogues collected for fine-tuning, {_listed(said)}."
    if kinds.keys() <= {"self", "procedural"}:
        return f"{sentence} No output of any other model is among them."
    if kinds.keys() <= {"self", "procedural", "file"}:
        return (
            f"{sentence} What files hold is their authors' word: this run has not looked into it."
        )
    return sentence


_ORIGINS = {
    "self": "{0} were written by models of this run",
    "procedural": "{0} by a program, without a model",
    "file": "{0} come from files ({1})",
    "judge": "{0} were rewritten by another model ({1})",
    "unknown": "{0} do not say where they come from",
}


def _kind(origin: str) -> str:
    kind = origin.partition(":")[0]
    return kind if kind in _ORIGINS else "unknown"


def _names(counts: Mapping[str, int], kind: str) -> list[str]:
    return sorted(origin.partition(":")[2] for origin in counts if _kind(origin) == kind)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _models(run: Run) -> dict[str, ModelResult]:
    found = {}
    for name, stage in STAGES.items():
        path = run.path / f"{MEASURE}{name}.json"
        if stage.model is None or not path.is_file():
            continue
        try:
            found[stage.model] = ModelResult.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise _broken(path, error) from error
    return found


def _data(run: Run, stage: str) -> DataReport | None:
    folder = run.path / FOLDER / stage
    if STAGES[stage].makes != "data" or not (folder / DATASET).is_file():
        return None
    origins = Counter(str(line.get("origin", "unknown")) for line in read_lines(folder / DATASET))
    return DataReport(
        dialogues=sum(origins.values()),
        origins=dict(origins),
        collected=_document(folder, "collect.json"),
    )


def _reward_models(run: Run) -> dict[str, dict[str, Any]]:
    runs = stage_runs(run)
    kinds = [name for name in runs if STAGES[name].makes == "reward"]
    found = {name: _document(runs[name].path, "reward.json") for name in kinds}
    return {name: document for name, document in found.items() if document}


def _document(folder: Path, name: str) -> dict[str, Any]:
    """What a stage has written of itself; nothing where it has not."""
    return Run.open(folder).read_json(name) if (folder / name).is_file() else {}


def _is_done(stage: str, own: Run) -> bool:
    if not (own.path / "state.json").is_file():
        return False
    return STAGES[stage].ends_with in own.read_json("state.json").get("done", [])


def _is_complete(run: Run, receipts: Sequence[StageReceipt]) -> bool:
    on = [name for name in STAGES if run.info.config.get(name) is not None]
    done = {receipt.name for receipt in receipts if receipt.is_done}
    measured = [(run.path / f"{MEASURE}{name}.json").is_file() for name in on if STAGES[name].model]
    return done >= set(on) and all(measured)


def _samples(run: Run) -> list[SideBySide]:
    """The first problems of each task that the first model was asked, with the first response of each model."""
    found: dict[tuple[str, str], SideBySide] = {}
    for name, stage in STAGES.items():
        if stage.model is None:
            continue
        for row in run.samples(MEASURE + name):
            if row.get("mode") != "on":
                continue
            one = found.setdefault(
                (row["task"], row["key"]),
                SideBySide(task=row["task"], prompt=row["prompt"], responses={}),
            )
            if stage.model not in one.responses:
                one.responses[stage.model] = Response.model_validate(row)
    by_task: dict[str, list[SideBySide]] = {}
    for one in found.values():
        by_task.setdefault(one.task, []).append(one)
    return [one for ones in by_task.values() for one in ones[:SAMPLES_PER_TASK]]


def _broken(path: Path, error: ValidationError) -> UserError:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the text"
    return UserError(
        at=str(path),
        got=f"{first['msg'].lower()} at {place}",
        want="a file as nalar wrote it",
        hint="move it away: the pipeline measures again",
    )
