"""Rejection sampling: a model answers train problems, what is good is kept, and a data set is written that `nalar sft`
reads. Resumes where it stopped, chunk by chunk, to the bit."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nalar.config import UserError
from nalar.data.dialogue import encode_prompt
from nalar.data.tokenizer import Tokenizer
from nalar.disk import decode, encode, write_atomic
from nalar.endpoint import Endpoint
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import SamplingParams
from nalar.evals.protocol import sample_problems
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model
from nalar.pipeline.base import read_folder
from nalar.pipeline.chunks import Chunk, Shelf, Tally, record_of, summed
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.dataset import Line, file_lines, general_lines, with_forms
from nalar.pipeline.filters import UNUSABLE
from nalar.pipeline.forecast import Forecast, forecast_collect
from nalar.pipeline.observer import Observer
from nalar.pipeline.selection import Sampling, select
from nalar.pipeline.session import Session
from nalar.pipeline.state import Outcome
from nalar.pipeline.tasks import EVAL_SEED, keep_files
from nalar.pipeline.training import run_stages
from nalar.run import Run
from nalar.tasks.problem import Problem, Split, Task
from nalar.tasks.registry import open_task
from nalar.train.checkpoint import Progress

STAGE = "collect"
DATASET, RECORD, CHUNKS = "dataset.jsonl", "collect.json", "collected"
_HELD_OUT: tuple[Split, ...] = ("valid", "test")
_COMPARED = 256
"""Problems of each held-out split that train problems are compared with: those that evaluations ask by default."""
_REMEDIES = {
    "wrong": "easier tasks, more samples, or a model that solves some of them",
    "not_whole": "a larger max_tokens, or a model that closes its turns",
    "no_thought": "--filters.no-thought, or a model that thinks",
    "language": "--rewrite rule, or a smaller filters.min_language_frac",
    "too_short": "a smaller filters.min_tokens",
    "too_long": "a larger filters.max_tokens",
    "looping": "a higher temperature, or --filters.no-looping",
    "verifier_error": "a look at the errors: nalar eval with the same model and tasks",
    UNUSABLE: "another rewriter",
}


def run_collect(
    config: CollectConfig, run: Run, observer: Observer, should_stop: Callable[[], bool]
) -> Outcome:
    """Sample, filter, rewrite, mix, write. UserError that names the stage where nothing is left to learn from."""
    keep_files(run, [*config.tasks, *config.general, *config.files])
    return run_stages(config, run, observer, should_stop, {STAGE: _collect})


def plan_collect(config: CollectConfig) -> Forecast:
    """What it will take. UserError where the model, a task, a file or the rewriter's key is missing or does not fit."""
    model, tokenizer = read_folder(Path(config.model))
    _problems(config, model, tokenizer)
    _mixed_in(config, tokenizer, STAGE)
    if config.rewriter is not None:
        Endpoint(config.rewriter.endpoint)
    return forecast_collect(config, model)


@dataclass(frozen=True)
class _Asked:
    """Problems of one task that are sampled side by side."""

    task: Task
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Source:
    """Who is sampled."""

    engine: Engine
    model: Transformer
    tokenizer: Tokenizer
    digest: str


def _collect(session: Session[CollectConfig]) -> Outcome:
    config, run = session.config, session.run
    model_config, tokenizer = read_folder(Path(config.model))
    asked = _problems(config, model_config, tokenizer)
    mixed_in = _mixed_in(
        config, tokenizer, run.info.name
    )  # first: it may be wrong, and costs little
    shelf = Shelf(run.path / CHUNKS)
    chunks = shelf.read(len(asked))
    digest = weights_digest(Path(config.model))
    _refuse_another_model(chunks, digest, config)
    kept = Progress(stage=STAGE, step=len(chunks), logs=chunks[-1].logs) if chunks else None
    with session.start(STAGE, steps=len(asked), kept=kept) as meter:
        source = None if len(chunks) == len(asked) else _opened_model(session, tokenizer, digest)
        for number in range(len(chunks), len(asked)):
            assert source is not None
            if session.should_stop():
                session.receipt(STAGE, meter)
                return Outcome.STOPPED
            chunk = _sampled(session, source, asked[number], number)
            shown = summed([*chunks, chunk])
            values = {"kept": shown.kept, "kept_frac": shown.kept / shown.samples}
            session.log(STAGE, number + 1, meter, values)
            session.receipt(STAGE, meter)
            run.sync_logs()
            chunk.logs = run.log_bytes()
            shelf.write(number, chunk)
            chunks.append(chunk)
        _write(session, tokenizer, digest, chunks, mixed_in)
        session.receipt(STAGE, meter)
    return Outcome.FINISHED


def _opened_model(session: Session[CollectConfig], tokenizer: Tokenizer, digest: str) -> _Source:
    place = session.place
    model = load_model(session.config.model, device=place.device, dtype=place.dtype)
    model.eval().requires_grad_(False)
    limits = EngineConfig(max_model_len=model.config.max_position_embeddings)
    return _Source(Engine(model, limits), model, tokenizer, digest)


def _problems(config: CollectConfig, model: ModelConfig, tokenizer: Tokenizer) -> list[_Asked]:
    """All train problems in chunks. UserError where a task has none, or one that is held out or has no room."""
    room = model.max_position_embeddings - config.max_tokens
    asked = []
    for word in config.tasks:
        task = _opened(word, "tasks")
        problems = task.problems("train", config.problems_per_task, config.seed)
        if not problems:
            raise UserError(at=f"tasks {word!r}", got="no train problem", want="one at least")
        _refuse_held_out(task, problems)
        for problem in problems:
            tokens = len(_prompt_ids(tokenizer, problem))
            if tokens > room:
                raise UserError(
                    at=f"tasks {word!r}",
                    got=f"a prompt of {tokens} tokens: {problem.prompt[:200]!r}",
                    want=f"at most {room}: the model has room for {model.max_position_embeddings}, "
                    f"and max_tokens is {config.max_tokens}",
                    hint="a smaller --max-tokens",
                )
        size = config.chunk_problems
        starts = range(0, len(problems), size)
        asked += [_Asked(task, tuple(problems[start : start + size])) for start in starts]
    return asked


def _opened(word: str, field: str) -> Task:
    return open_task(word, at=field)


def _prompt_ids(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    return encode_prompt(tokenizer, [{"role": "user", "content": problem.prompt}])


def _refuse_held_out(task: Task, problems: Sequence[Problem]) -> None:
    """UserError where a problem to learn from is one to be measured on."""
    keys = {problem.key for problem in problems}
    for split in _HELD_OUT:
        for held in task.problems(split, _COMPARED, EVAL_SEED):
            if held.key in keys:
                raise UserError(
                    at=f"task {task.id}",
                    got=f"the {split} problem {held.key!r} among those to learn from",
                    want="problems that are in one split alone",
                )


@torch.inference_mode()
def _sampled(session: Session[CollectConfig], source: _Source, asked: _Asked, number: int) -> Chunk:
    """A pure function of config, model and number: the engine forgets what it has cached of other chunks."""
    config = session.config
    source.engine.load(source.model.state_dict(), version=0)
    params = SamplingParams(
        n=config.samples,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        seed=config.seed * 100_003 + number,
    )
    samples = sample_problems(source.engine, source.tokenizer, asked.task, asked.problems, params)
    session.add_sampling(source.model.config, samples)
    origin = Sampling(
        stage=session.run.info.name,
        model=source.digest,
        policy="/".join(Path(config.model).parts[-2:]),
        seed=params.seed,
    )
    tally, lines = select(samples, config, source.tokenizer, origin)
    return Chunk(task=asked.task.id, model=source.digest, logs={}, tally=tally, lines=lines)


def _mixed_in(config: CollectConfig, tokenizer: Tokenizer, stage: str) -> list[Line]:
    """What stands there beside the model's own. UserError where a task rates nothing, or a file is no use."""
    lines = list[Line]()
    for word in config.general:
        lines += general_lines(word, _opened(word, "general"), config, tokenizer, stage=stage)
    for word in config.files:
        lines += file_lines(word, tokenizer, stage=stage)
    return lines


def _write(
    session: Session[CollectConfig],
    tokenizer: Tokenizer,
    digest: str,
    chunks: Sequence[Chunk],
    mixed_in: Sequence[Line],
) -> None:
    """`dataset.jsonl` and `collect.json`, from the chunks and what is mixed in."""
    config, run = session.config, session.run
    stage = run.info.name
    _refuse_nothing(stage, summed(chunks))
    kept = [line for chunk in chunks for line in chunk.lines]
    lines = [*with_forms(kept, config, tokenizer), *mixed_in]
    data = b"".join(encode(line.row()) + b"\n" for line in lines)
    record = record_of(stage, digest, chunks, lines, dataset=hashlib.sha256(data).hexdigest())
    write_atomic(run.path / DATASET, data)
    run.write_json(RECORD, record.model_dump(mode="json"))
    for line in told(record.sampled, config):
        session.observer.note(line)
    session.observer.note(record.sentence)


def refuse_damaged(folder: Path, *, stage: str) -> None:
    """UserError where a data set is not what its stage has written: what is learned from it would be another thing."""
    record, data = decode(_read(folder / RECORD)), _read(folder / DATASET)
    written = None if record is None else record.get("dataset")
    if written is not None and written != hashlib.sha256(data).hexdigest():
        raise UserError(
            at=f"stage {stage}",
            got=f"another {DATASET} in {folder} than the stage has written",
            want="every line of it, unchanged",
            hint=f"put it back as it was, or move {folder} away, and it is made again",
        )


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def told(tally: Tally, config: CollectConfig) -> Iterator[str]:
    """What became of the samples, for people."""
    reasons = _by_size(tally.dropped)
    yield (
        f"kept {tally.kept:,} of {tally.samples:,} samples, of {tally.kept_problems:,} of "
        f"{tally.problems:,} problems" + (f"; left out: {reasons}" if reasons else "")
    )
    if config.rewrite is not None:
        yield f"written anew by {config.rewrite}: {tally.rewritten:,} of {tally.kept:,}"


def _refuse_nothing(stage: str, tally: Tally) -> None:
    if tally.kept:
        return
    reason = max(tally.dropped, key=lambda name: tally.dropped[name])
    raise UserError(
        at=f"stage {stage}: filters",
        got=f"none of {tally.samples:,} samples left: {_by_size(tally.dropped)}",
        want="one sample at least that passes them",
        hint=f"in a new run: {_REMEDIES.get(reason, 'other filters')}",
    )


def _by_size(dropped: Mapping[str, int]) -> str:
    """Such as `wrong 90, not whole 10`."""
    rows = sorted(dropped.items(), key=lambda row: (-row[1], row[0]))
    return ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in rows)


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weights in a model's folder, file by file in the order of their names."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _refuse_another_model(chunks: Sequence[Chunk], digest: str, config: CollectConfig) -> None:
    if any(chunk.model != digest for chunk in chunks):
        raise UserError(
            at=f"model {config.model}",
            got="other weights than the run began with",
            want="the same, so that it goes on as if it had never stopped",
            hint="put them back as they were, or start a new run",
        )
