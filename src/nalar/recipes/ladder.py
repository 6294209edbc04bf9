"""R1-Zero beyond the demo's two tasks, still at the size of a laptop: what each teaches is in docs/ladder.md."""

from collections.abc import Callable, Mapping

from nalar.data.config import (
    CorpusConfig,
    DocumentWeights,
    LessonConfig,
    PackingConfig,
    TokenizerConfig,
)
from nalar.evals.config import EvalConfig
from nalar.pipeline.config import ZeroConfig
from nalar.recipes.zero import zero_cpu
from nalar.rl.config import RLConfig
from nalar.train.config import CheckpointConfig, PretrainConfig

_NONE = DocumentWeights(facts=0, verdicts=0, word_problems=0, conversions=0, search=0, chains=0)
"""Nothing about Countdown and chain sums."""

RUNGS: Mapping[str, LessonConfig] = {
    "sums": LessonConfig(task="arithmetic,max_terms=2,min_digits=3,max_digits=3,operators=+"),
    "linear": LessonConfig(task="linear,max_coefficient=5,max_solution=9"),
    "sequence": LessonConfig(task="sequence,rules=step+growing,max_start=20,max_step=5"),
    "sorting": LessonConfig(task="sorting,min_items=5,max_items=5"),
    "strings": LessonConfig(task="strings,actions=reverse,min_letters=5,max_letters=7"),
    "programs": LessonConfig(task="programs,min_steps=2,max_steps=3"),
}
"""The rungs of the ladder, by the name that stands in their recipes."""


def ladder(
    recipe: str,
    *rungs: str,
    slice_tokens: int = 2_250_000,
    vocab_size: int,
    max_tokens: int,
    prompts_per_step: int = 16,
    group_size: int = 16,
) -> ZeroConfig:
    """One model, one corpus with equal shares for all rungs, RL over their tasks in turn.

    vocab_size: what the corpus has merges for; 261 keeps every letter a token of its own.
    """
    full = zero_cpu()
    lessons = tuple(RUNGS[name] for name in rungs)
    words = tuple(lesson.task for lesson in lessons)
    return ZeroConfig(
        recipe=recipe,
        device="cpu",
        model=full.model.model_copy(update={"vocab_size": vocab_size}),
        tokenizer=TokenizerConfig(vocab_size=vocab_size),
        corpus=CorpusConfig(weights=_NONE, lessons=lessons),
        packing=PackingConfig(),
        pretrain=PretrainConfig(
            slice_tokens=slice_tokens,
            max_slices=2,
            optim=full.pretrain.optim,
            schedule=full.pretrain.schedule,
        ),
        checkpoint=CheckpointConfig(keep_slices=False),
        probe=None,
        rl=RLConfig(
            steps=100,
            tasks=words,
            prompts_per_step=prompts_per_step,
            group_size=group_size,
            max_tokens=max_tokens,
            lr=4e-4,
        ),
        evals=EvalConfig(tasks=words, max_tokens=max_tokens),
        price=full.price,
    )


def zero_sums_cpu() -> ZeroConfig:
    """Sums of two numbers of three digits."""
    return ladder("zero-sums-cpu", "sums", vocab_size=266, max_tokens=56)


def zero_linear_cpu() -> ZeroConfig:
    """Linear equations of one unknown."""
    return ladder("zero-linear-cpu", "linear", vocab_size=269, max_tokens=48)


def zero_sequence_cpu() -> ZeroConfig:
    """Number sequences with a constant or a growing step."""
    return ladder("zero-sequence-cpu", "sequence", vocab_size=282, max_tokens=56)


def zero_sorting_cpu() -> ZeroConfig:
    """Five numbers to sort."""
    return ladder("zero-sorting-cpu", "sorting", vocab_size=280, max_tokens=80)


def zero_strings_cpu() -> ZeroConfig:
    """Words to read backwards."""
    return ladder("zero-strings-cpu", "strings", vocab_size=261, max_tokens=64)


def zero_programs_cpu() -> ZeroConfig:
    """Small programs, judged by hidden tests. A judgement takes 10 ms, so groups are small."""
    return ladder(
        *("zero-programs-cpu", "programs"),
        vocab_size=400,
        max_tokens=88,
        prompts_per_step=8,
        group_size=8,
    )


def zero_ladder_cpu() -> ZeroConfig:
    """Four rungs in one model, and twice the tokens."""
    return ladder(
        *("zero-ladder-cpu", "sums", "linear", "sequence", "sorting"),
        slice_tokens=4_500_000,
        vocab_size=304,
        max_tokens=80,
        prompts_per_step=32,
    )


LADDER: Mapping[str, Callable[[], ZeroConfig]] = {
    "zero-sums-cpu": zero_sums_cpu,
    "zero-linear-cpu": zero_linear_cpu,
    "zero-sequence-cpu": zero_sequence_cpu,
    "zero-sorting-cpu": zero_sorting_cpu,
    "zero-strings-cpu": zero_strings_cpu,
    "zero-programs-cpu": zero_programs_cpu,
    "zero-ladder-cpu": zero_ladder_cpu,
}
