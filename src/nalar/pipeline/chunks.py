"""What a collecting run has so far: a file for every few problems, whole or not there at all. Imports no torch."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nalar.config import UserError
from nalar.disk import decode, encode, mend_folder, write_atomic
from nalar.evals.origins import origins_sentence
from nalar.pipeline.dataset import Line


class Tally(BaseModel):
    """Samples of some problems, and what became of them. Only gains keys."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    problems: int = 0
    """That were asked."""
    kept_problems: int = 0
    """Of these, with a sample that was kept."""
    samples: int = 0
    kept: int = 0
    rewritten: int = 0
    """Of those that were kept."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """By reason: the first filter that objected."""
    prompt_tokens: int = 0
    tokens: int = 0
    """Sampled."""
    kept_tokens: int = 0
    judge_tokens: int = 0
    """Read and written by another model, as it says itself."""

    def __add__(self, other: "Tally") -> "Tally":
        dropped = Counter(self.dropped) + Counter(other.dropped)
        names = set(Tally.model_fields) - {"dropped"}
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Tally(dropped=dict(sorted(dropped.items())), **sums)


class Chunk(BaseModel):
    """`collected/chunk-NNNNNN.json`: a few problems of one task, sampled, filtered and rewritten. Only gains keys."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    task: str
    model: str
    """SHA-256 over the weights."""
    logs: dict[str, int]
    """Bytes of each log of the run when this was done: what stands beyond them came later."""
    tally: Tally
    lines: list[Line]


class CollectRecord(BaseModel):
    """`collect.json`: what a data set holds, and what was left out. Only gains keys."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    schema_version: int = 1
    stage: str
    model: str
    """SHA-256 over the weights of who was sampled."""
    dataset: str | None = None
    """SHA-256 of dataset.jsonl; None where an older nalar has not said so."""
    sampled: Tally
    by_task: dict[str, Tally]
    lines: int
    """Of dataset.jsonl: what was kept, its further forms, and what was mixed in."""
    forms: dict[str, int]
    origins: dict[str, int]
    prompt_tokens: int
    tokens: int
    """Behind the prompts: what fine-tuning learns from, a pass."""
    sentence: str
    """What may be said of the origins."""


class Shelf:
    """The chunks of one run, in their order."""

    def __init__(self, folder: Path) -> None:
        """folder: made with the first chunk; what a kill left unfinished there is cleared away."""
        self._folder = folder
        if folder.is_dir():
            mend_folder(folder)

    def read(self, count: int) -> list[Chunk]:
        """The first ones that are there, `count` of them at most; UserError where one is not as it was written."""
        found: list[Chunk] = []
        while len(found) < count and (path := self._path(len(found))).exists():
            try:
                found.append(Chunk.model_validate(decode(path.read_bytes())))
            except ValidationError as error:
                raise UserError(
                    at=str(path),
                    got="a broken file",
                    want="a chunk as nalar wrote it",
                    hint="delete it, and its problems are sampled again",
                ) from error
        return found

    def write(self, number: int, chunk: Chunk) -> None:
        write_atomic(self._path(number), encode(chunk.model_dump(mode="json")) + b"\n")

    def _path(self, number: int) -> Path:
        return self._folder / f"chunk-{number:06d}.json"


def summed(chunks: Iterable[Chunk]) -> Tally:
    return sum((chunk.tally for chunk in chunks), Tally())


def record_of(
    stage: str, model: str, chunks: Sequence[Chunk], lines: Sequence[Line], *, dataset: str
) -> CollectRecord:
    """Counted from the chunks and from the lines themselves."""
    tasks = dict.fromkeys(chunk.task for chunk in chunks)
    origins = Counter(line.origin for line in lines)
    return CollectRecord(
        stage=stage,
        model=model,
        dataset=dataset,
        sampled=summed(chunks),
        by_task={task: summed(c for c in chunks if c.task == task) for task in tasks},
        lines=len(lines),
        forms=dict(Counter(line.form for line in lines)),
        origins=dict(origins),
        prompt_tokens=sum(line.prompt_tokens for line in lines),
        tokens=sum(line.tokens for line in lines),
        sentence=origins_sentence(origins),
    )
