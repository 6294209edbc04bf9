"""A model that scores answers: the language model's own layers, and a head that reads one number at the last token."""

# S sequences · D hidden

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.kernels.documents import Documents, without_waiting
from nalar.model.transformer import Hidden, Transformer
from nalar.model.weights import load_model
from nalar.plan.model import sequence_flops

Ids = tuple[int, ...]
MOST_TOKENS = 16_384
"""Of a batch that is scored."""


def with_score_head(model: Transformer, *, seed: int) -> Transformer:
    """The same layers with a head that scores in the place of the output head; the model that was given is no more.

    The head begins as all weights of the model did: normal, of std initializer_range.
    """
    weight = model.head_weight
    config = model.config.model_copy(update={"num_labels": 1})
    gen = torch.Generator().manual_seed(seed)
    row = torch.randn(1, config.hidden_size, generator=gen) * config.initializer_range
    model.score = nn.Linear(config.hidden_size, 1, bias=False, device="meta")
    model.score.weight = nn.Parameter(row.to(weight.device, weight.dtype))
    if not config.tie_word_embeddings:
        del model.lm_head
    model.config = config
    return model


class RewardModel:
    """Scores whole sequences, frozen."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.flops = 0.0
        """Of all that was scored so far, by formula."""

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Of a Hugging Face folder of the ...ForSequenceClassification kind with one label; UserError of any other."""
        model = load_model(folder, device=device, dtype=dtype, scores=True)
        return cls(model, Tokenizer.load(Path(folder)))

    @property
    def longest(self) -> int:
        """Ids of a sequence at most."""
        return self.model.config.max_position_embeddings

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """One number each, without bounds, by a function of the set of these sequences: their order makes no difference
        to the bit, and the company of others none beyond rounding. UserError where one is empty or too long.

        Equal sequences are passed once. Where nothing but rounding may ever differ, as between two runs of one seed, a
        caller asks for the same sequences together: RL for those of one group.
        """
        known: dict[Ids, float] = {}
        for batch in batches_of(sorted({tuple(one) for one in sequences}), MOST_TOKENS):
            known |= zip(batch, self._scores(batch), strict=True)
        return [known[tuple(sequence)] for sequence in sequences]

    def _scores(self, batch: Sequence[Ids]) -> list[float]:
        lengths = [len(ids) for ids in batch]
        for length in (lengths[0], lengths[-1]):
            if not 0 < length <= self.longest:
                raise UserError(
                    at="reward model",
                    got=f"{length} ids to score",
                    want=f"1 to {self.longest}, as the model has positions",
                )
        self.flops += sum(
            sequence_flops(self.model.config, length, backward=False) for length in lengths
        )
        scores_S: list[float] = last_scores(self.model, batch)[0].tolist()
        return scores_S


def last_scores(model: Transformer, sequences: Sequence[Ids]) -> tuple[Tensor, Hidden]:
    """fp32 [S]: the score at the last id of each sequence, in one flat batch; and all that the pass gave."""
    device, lengths = model.head_weight.device, [len(ids) for ids in sequences]
    ids_N = without_waiting(torch.tensor(list(chain.from_iterable(sequences))), device)
    last_S = without_waiting(torch.tensor(list(accumulate(lengths))) - 1, device)
    hidden = model(ids_N, Documents.of(lengths, device=device))
    return model.scores(hidden.states.index_select(0, last_S)), hidden


def batches_of(sequences: Sequence[Ids], max_tokens: int) -> Iterator[list[Ids]]:
    """Shortest first, each batch of at most `max_tokens` (one sequence at least)."""
    batch: list[Ids] = []
    for ids in sorted(sequences, key=len):
        if batch and sum(map(len, batch)) + len(ids) > max_tokens:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def squashed(score: float) -> float:
    """Between 0 and 1: the sigmoid, without overflow.

    Scores of the Bradley-Terry model have no bounds, and a policy that finds an answer far outside of what the model
    has seen could earn any number. Squashed, this part of the reward is worth its weight at most.
    """
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    return math.exp(score) / (1.0 + math.exp(score))
