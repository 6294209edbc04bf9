"""Lessons packed one after another, and the training forward over them."""

# T tokens of a micro-batch · N drawn tokens · M responses

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, count

import torch
from torch import Tensor

from nalar.kernels.documents import Documents, without_waiting
from nalar.kernels.logprobs import token_logprobs
from nalar.model.transformer import Transformer
from nalar.rl.config import RLConfig
from nalar.rl.lessons import Lesson


@dataclass(frozen=True)
class PolicyBatch:
    """Sequences one after another, and which of their next tokens count."""

    ids_T: Tensor
    """int64: prompts and responses but for each response's last token, which has no next one."""
    documents: Documents
    where_N: Tensor
    """int64: the positions in ids_T that predict a token which the model drew."""
    targets_N: Tensor
    old_logprobs_N: Tensor
    advantages_N: Tensor
    lengths_M: Tensor
    """int64: drawn tokens of each response."""
    order: tuple[int, ...]
    """Of each response, its place among the lessons that were given."""
    counts: tuple[int, ...]
    """`lengths_M` on the host."""
    weights_N: Tensor | None = None
    """None: 1 each. 0: in no term of the loss."""
    reference_N: Tensor | None = None
    teacher_N: Tensor | None = None

    @property
    def counted_N(self) -> Tensor:
        """fp32: 0 for a token that is left out of the loss, else 1."""
        if self.weights_N is None:
            return torch.ones_like(self.advantages_N)
        return (self.weights_N != 0).float()


def policy_batches(
    lessons: Sequence[Lesson], *, max_tokens: int, device: torch.device
) -> Iterator[PolicyBatch]:
    """Sequences of like length together, at most max_tokens (one sequence at least)."""
    batch: list[int] = []
    tokens = 0
    for i in sorted(range(len(lessons)), key=lambda i: lessons[i].length):
        if batch and tokens + lessons[i].length > max_tokens:
            yield _join(lessons, batch, device)
            batch, tokens = [], 0
        batch.append(i)
        tokens += lessons[i].length
    if batch:
        yield _join(lessons, batch, device)


def _join(lessons: Sequence[Lesson], order: Sequence[int], device: torch.device) -> PolicyBatch:
    chosen = [lessons[i] for i in order]
    ids: list[int] = []
    where: list[int] = []
    targets: list[int] = []
    drawn: list[float] = []
    advantage: list[float] = []
    for lesson in chosen:
        prompt_ids, response = lesson.rollout.prompt_ids, lesson.rollout.response
        first = len(ids) + len(prompt_ids) - 1
        where.extend(first + i for i in compress(count(), response.drawn))
        ids.extend(prompt_ids + response.token_ids[:-1])
        targets.extend(compress(response.token_ids, response.drawn))
        drawn.extend(lesson.drawn_logprobs)
        advantage.extend([lesson.advantage] * response.num_drawn)
    counts = tuple(lesson.rollout.response.num_drawn for lesson in chosen)
    old_N = _joined([lesson.old_logprobs_N for lesson in chosen])
    gain_N = _joined([lesson.gain_N for lesson in chosen])
    advantages_N = without_waiting(torch.tensor(advantage), device)
    return PolicyBatch(
        ids_T=without_waiting(torch.tensor(ids), device),
        documents=Documents.of([lesson.length for lesson in chosen], device=device),
        where_N=without_waiting(torch.tensor(where), device),
        targets_N=without_waiting(torch.tensor(targets), device),
        old_logprobs_N=without_waiting(torch.tensor(drawn), device) if old_N is None else old_N,
        advantages_N=advantages_N if gain_N is None else advantages_N + gain_N,
        lengths_M=without_waiting(torch.tensor(counts), device),
        order=tuple(order),
        counts=counts,
        weights_N=_joined([lesson.weights_N for lesson in chosen]),
        reference_N=_joined([lesson.reference_N for lesson in chosen]),
        teacher_N=_joined([lesson.teacher_N for lesson in chosen]),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if len(there) == len(parts) else None


def trainer_logprobs(
    model: Transformer,
    batch: PolicyBatch,
    *,
    temperature: float = 1.0,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Log-probability and entropy [N] of each drawn token by the training forward, and expert loads.

    Both are those of the distribution at `temperature`. entropy_learns: whether the entropy has a gradient.
    """
    hidden = model(batch.ids_T, batch.documents)
    states_ND = hidden.states.index_select(0, batch.where_N)
    logprobs_N, entropy_N = token_logprobs(
        states_ND,
        model.head_weight,
        batch.targets_N,
        logits_scaling=model.config.logits_scaling * temperature,
        entropy_learns=entropy_learns,
    )
    return logprobs_N, entropy_N, list(hidden.loads)


@torch.no_grad()
def drawn_logprobs(model: Transformer, lessons: Sequence[Lesson], config: RLConfig) -> list[Tensor]:
    """The log-probabilities of each lesson's drawn tokens, by the same batches as an update on these lessons has."""
    found: dict[int, Tensor] = {}
    for batch in policy_batches(
        lessons, max_tokens=config.micro_batch_tokens, device=model.head_weight.device
    ):
        logprobs_N, _, _ = trainer_logprobs(model, batch, temperature=config.temperature)
        found |= zip(batch.order, logprobs_N.split(batch.counts), strict=True)
    return [found[i] for i in range(len(lessons))]
