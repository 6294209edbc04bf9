"""The settings of sources, tokenizer, procedural corpus and packing. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from nalar.config import Config, ConfigError, lookup
from nalar.tasks.config import (
    ArithmeticConfig,
    ChainSumConfig,
    CountdownConfig,
    HailstoneConfig,
)
from nalar.tasks.registry import settings_of

Format = Literal["text", "jsonl", "parquet"]
Content = Literal["text", "dialogue"]

REPLIES = ("general", "safety")
"""Ids of the tasks that are answered at once, in words: their lessons have no steps."""
LESSONS = ("arithmetic", "linear", "sequence", "sorting", "strings", "programs", *REPLIES)
"""Ids of the tasks that the procedural corpus has lessons on (`corpora/lessons.py`)."""
WORDED = ("arithmetic", "linear")
"""Of these, those whose steps are calculations, which words can join (`corpora/wording.py`)."""


class ProceduralSource(Config):
    """Documents made up as they are needed, without end, as `corpus` sets them."""

    kind: Literal["procedural"] = "procedural"
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of the tokens trained on, against the weights of the other sources."""

    @property
    def where(self) -> str:
        return "procedural"


class RecordSource(Config):
    """What sources of records have in common."""

    content: Content = "text"
    """text: the field holds a string. dialogue: it holds messages, each with role and content."""
    field: str | None = None
    """Where a record has its content. None: in `text`, a dialogue in `messages`."""
    max_records: int | None = Field(default=None, ge=1)
    """Records read at most, from the first on. None: all."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of the tokens trained on, against the weights of the other sources."""

    @property
    def content_field(self) -> str:
        return self.field or ("messages" if self.content == "dialogue" else "text")


class FileSource(RecordSource):
    """Files of one's own: text, JSONL (either may be .gz) or Parquet."""

    kind: Literal["files"] = "files"
    path: str = Field(min_length=1)
    """A file, a folder with all that lies below it, or a glob such as `books/**/*.jsonl`."""
    format: Format | None = None
    """None: what the suffix of each file says."""
    separator: str | None = Field(default=None, min_length=1)
    """What stands between the documents of a text file. None: a file is one document."""

    @property
    def where(self) -> str:
        return self.path


class DatasetSource(RecordSource):
    """What the package `datasets` finds under an id, read as a stream."""

    kind: Literal["dataset"] = "dataset"
    id: str = Field(min_length=1)
    """On the Hugging Face hub, or a folder."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    """A commit. None: the newest at the time of reading; what is in the cache stays as it was."""

    @property
    def where(self) -> str:
        return f"hf:{self.id}"


AnySource = ProceduralSource | FileSource | DatasetSource
Source = Annotated[AnySource, Field(discriminator="kind")]


class DataConfig(Config):
    """What is read: one source, or a mixture by weight."""

    sources: tuple[Source, ...] = (ProceduralSource(),)
    """A file, a folder, a glob, hf:ID or `procedural`, each with settings such as `,weight=2`: docs/data.md."""
    cache_dir: str = "~/.cache/nalar/corpora"
    """Where sources are kept as token ids, for all runs."""
    max_bad_frac: float = Field(default=0.1, ge=0, le=1)
    """Records of a source that cannot be used are skipped and counted; more than this share is an error."""


class TokenizerConfig(Config):
    """A byte-level BPE: learned from the run's own sources, or one that is there."""

    path: str | None = None
    """A folder with a tokenizer, as `nalar tokenizer` writes it. None: learned when the run begins."""
    vocab_size: int = Field(default=320, ge=261)
    """All ids: 256 bytes, 5 special tokens, and merges for the rest. A tokenizer of another size is refused."""
    sample_documents: int = Field(default=4000, ge=1)
    """Learning: documents that merges are learned from, drawn evenly from all of each source, held in memory."""
    signs_apart: bool = True
    """Learning: line ends, digits and the signs of arithmetic never merge, so that each stays one token."""
    tools: bool = False
    """Learning: four more special tokens, for calls of tools and their outputs (docs/tools.md)."""

    def model_post_init(self, _context: object) -> None:
        if self.tools and self.vocab_size < 265:
            raise ConfigError(
                at="tokenizer.vocab_size",
                got=f"{self.vocab_size} with tokenizer.tools",
                want="at least 265: 256 bytes and 9 special tokens",
            )


class DocumentWeights(Config):
    """Shares of the document kinds, by document. Need not add up to 1."""

    facts: float = Field(default=0.12, ge=0)
    """Lists of sums, differences and products."""
    verdicts: float = Field(default=0.24, ge=0)
    """A target and tries at it, each marked as hit or miss."""
    word_problems: float = Field(default=0.02, ge=0)
    conversions: float = Field(default=0.06, ge=0)
    """Between steps and expressions, both ways."""
    search: float = Field(default=0.34, ge=0)
    """Dialogues that search blindly for a Countdown answer."""
    chains: float = Field(default=0.22, ge=0)
    """Dialogues on chain sums."""


class LessonConfig(Config):
    """How one task is taught beside Countdown and chain sums: pieces of the work, and attempts nobody filtered."""

    task: str
    """A word as on the command line: `linear,max_solution=9`. Only train problems are shown."""
    attempts: float = Field(default=0.8, ge=0)
    """Share of documents, as in `weights`: dialogues that try a problem."""
    pieces: float = Field(default=0.2, ge=0)
    """Share of documents: lists of single steps of the work, without a problem. 0 where a task has no steps."""
    wording: Literal["symbols", "words"] = "symbols"
    """symbols: `3-2=1,-4-5=-9`. words: `3-2 is 1, maka -4-5 jadi -9`, each step in a language drawn at random."""
    slip_frac: float = Field(default=0.01, ge=0, le=1)
    """A step that goes wrong; what follows goes on from it."""
    blurt_frac: float = Field(default=0.45, ge=0, le=1)
    """Attempts that answer at once; all do where a task has no steps, and this and what is next count for nothing."""
    partial_frac: float = Field(default=0.25, ge=0, le=1)
    """Attempts that give up on the way and guess; the rest are worked through."""
    guess_right_frac: float = Field(default=0.15, ge=0, le=1)
    """Answers of those that are right. The others are guesses of the task's own: right in form."""

    @property
    def name(self) -> str:
        """The task's id."""
        return settings_of(self.task, at="corpus.lessons")[0]

    def model_post_init(self, _context: object) -> None:
        lookup(self.name, {name: name for name in LESSONS}, at="corpus.lessons")
        if self.name in REPLIES and self.pieces:
            raise ConfigError(
                at="corpus.lessons",
                got=f"pieces={self.pieces} of {self.name}",
                want="pieces=0: it is answered at once, and has no steps",
            )
        if self.wording == "words" and self.name not in WORDED:
            raise ConfigError(
                at="corpus.lessons",
                got=f"wording=words for {self.name}",
                want=f"wording=symbols: words join the steps of {' and '.join(WORDED)} alone",
            )
        if self.blurt_frac + self.partial_frac > 1:
            raise ConfigError(
                at="corpus.lessons",
                got=f"blurt_frac={self.blurt_frac} and partial_frac={self.partial_frac}",
                want="at most 1 together",
            )


class CallsConfig(Config):
    """Dialogues on arithmetic in which a calculator is at hand: how often it is called, and what comes of it."""

    share: float = Field(default=0.5, gt=0)
    """Of documents, as in `weights`: these dialogues."""
    echo_share: float = Field(default=0.5, ge=0)
    """Of documents: one expression or number said again and again, from which copying is learned."""
    arithmetic: ArithmeticConfig = ArithmeticConfig(
        min_terms=2, max_terms=2, min_digits=4, max_digits=4, operators="*"
    )
    call_frac: float = Field(default=0.5, ge=0, le=1)
    """Dialogues with a call; the others guess a number of the right length."""
    right_frac: float = Field(default=0.4, ge=0, le=1)
    """Calls that ask what was asked. Of the others most are about other numbers, some are no expression."""
    read_frac: float = Field(default=0.7, ge=0, le=1)
    """Outputs that are taken for the answer; behind the others a number is guessed."""


class ChainedCallsConfig(Config):
    """Dialogues on hailstones in which each step is a call of a calculator: how far they go, and what goes wrong."""

    share: float = Field(default=0.8, gt=0)
    """Of documents, as in `weights`: these dialogues."""
    echo_share: float = Field(default=0.2, ge=0)
    """As in `corpus.calls`."""
    hailstone: HailstoneConfig = HailstoneConfig(min_steps=1, max_steps=24)
    blurt_frac: float = Field(default=0.25, ge=0, le=1)
    """Dialogues that guess at once."""
    give_up_frac: float = Field(default=0.25, ge=0, le=1)
    """Dialogues that end before the last step, anywhere, and take the number that they have. The rest go on."""
    slip_frac: float = Field(default=0.01, ge=0, le=1)
    """Steps that go wrong: by the other rule, with another number, or not counted. What follows goes on from them."""

    def model_post_init(self, _context: object) -> None:
        if self.blurt_frac + self.give_up_frac > 1:
            raise ConfigError(
                at="corpus.chained_calls",
                got=f"blurt_frac={self.blurt_frac} and give_up_frac={self.give_up_frac}",
                want="at most 1 together",
            )


class CorpusConfig(Config):
    """The procedural corpus: how much of what, and how bad. Every `_frac` is a probability in [0, 1]."""

    countdown: CountdownConfig = CountdownConfig()
    chain_sum: ChainSumConfig = ChainSumConfig()
    weights: DocumentWeights = DocumentWeights()
    lessons: tuple[LessonConfig, ...] = ()
    """Further tasks; set in a recipe (docs/ladder.md)."""
    calls: CallsConfig | None = None
    """Dialogues that call a calculator; None: none. Needs tokenizer.tools."""
    chained_calls: ChainedCallsConfig | None = None
    """Dialogues of many calls, each of which goes by what the one before gave; None: none. Needs tokenizer.tools."""

    slip_frac: float = 0.01
    """A result that is off by a little."""
    wrong_verdict_frac: float = 0.01
    """A mark that says the opposite of what the result shows."""
    messy_frac: float = 0.03
    """Lists of tries with spaces, with words for marks, or on one line."""

    hit_frac: float = 0.42
    """Lines of a verdict list that reach the target."""
    near_miss_frac: float = 0.1
    """Misses of a verdict list whose result looks like the target."""
    one_step_frac: float = 0.35
    """Verdict lists over two numbers instead of the full count."""
    verdict_from_frac: float = 0.35
    """Verdict lists that name their numbers, and use no others."""

    no_try_frac: float = 0.2
    """Search dialogues that answer at once."""
    mean_tries: float = Field(default=2.0, ge=1)
    """Mean of the geometric number of tries a search has patience for; a hit ends it early."""
    long_search_frac: float = 0.2
    """Searches with the patience of `long_mean_tries` instead."""
    long_mean_tries: float = Field(default=9.0, ge=1)
    """Mean of the geometric number of tries of a long search."""
    max_tries: int = Field(default=17, ge=1)
    """No search is longer."""
    no_repeat_frac: float = 0.5
    """Searches that never make a try twice (where all tries are enumerated)."""
    past_hit_frac: float = 0.1
    """Marked hits after which the search goes on all the same."""
    answer_last_frac: float = 0.6
    """Failed searches that answer with their last try; the others answer at random."""

    chain_blurt_frac: float = 0.4
    """Chain dialogues that answer at once."""
    chain_partial_frac: float = 0.25
    """Chain dialogues that take one or two steps and then guess; the rest are worked through."""
    chain_guess_right_frac: float = 0.3
    """Guessed chain answers that are right."""

    def model_post_init(self, _context: object) -> None:
        given = [share for _, share in self.weights]
        given += [share for one in self.lessons for share in (one.attempts, one.pieces)]
        if not (self.calls or self.chained_calls or sum(given) > 0):
            raise ConfigError(
                at="corpus.weights", got="no share above 0", want="at least one kind of document"
            )
        names = [lesson.name for lesson in self.lessons]
        if len(set(names) | {"countdown", "chain_sum"}) < len(names) + 2:
            raise ConfigError(
                at="corpus.lessons",
                got=", ".join(names),
                want="each task once",
                hint="one lesson a task",
            )
        for name, value in self:
            if name.endswith("_frac") and not 0 <= value <= 1:
                raise ConfigError(
                    at=f"corpus.{name}", got=str(value), want="a probability between 0 and 1"
                )


class PackingConfig(Config):
    """How documents fill the batch of a training step."""

    step_tokens: int = Field(default=1536, ge=2)
    """Positions that a step trains on, whatever the documents are."""
    document_tokens: int = Field(default=320, ge=2)
    """Longer documents are cut into pieces of this many positions."""
