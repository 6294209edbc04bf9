"""What needs a model but no training: greedy answers, and the base forced to search on."""

from collections.abc import Sequence

from controls.finished import Finished, outcome
from controls.results import Control, Greedy
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import BannedTokens
from nalar.evals.protocol import Sample
from nalar.run import Meter
from nalar.tasks.traces import HIT


def greedy(finished: Finished) -> tuple[Greedy, dict[str, list[list[Sample]]]]:
    """Both models at temperature 0, and the final one's samples by task."""
    evals = finished.config.evals.model_copy(update={"temperature": 0.0, "k": 1})
    with Meter() as meter:
        base, tokenizer, _ = finished.base()
        before = finished.measure(base, tokenizer, evals)
        final = dict(finished.sample(*finished.final(), evals))
    after = {task_id: outcome(groups) for task_id, groups in final.items()}
    return Greedy(base=before, final=after, wall_s=meter.total.wall_s), final


def on_until_hit(tokenizer: Tokenizer) -> BannedTokens:
    """Nothing but text, until the thought has marked a hit; then whatever the model likes.

    All special tokens are banned, not </think> alone: the end of the turn would be a way out too.
    """
    mark, special = HIT.encode(), tuple(sorted(tokenizer.special_ids))

    def banned(past: Sequence[int]) -> Sequence[int]:
        return () if mark in b"".join(map(tokenizer.token_bytes, past)) else special

    return banned


def base_forced(finished: Finished) -> Control:
    """The base made to search until it marks a hit or meets the cap. Nothing is trained."""
    with Meter() as meter:
        model, tokenizer, _ = finished.base()
        groups = finished.sample_banned(model, tokenizer, on_until_hit(tokenizer))
    return Control(
        tasks={"countdown": outcome(groups)},
        tokens=0,
        flops=0.0,
        flops_of_rl=0.0,
        wall_s=meter.total.wall_s,
    )
