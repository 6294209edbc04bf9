"""A model that scores answers: the language model's own layers, and a head that reads one number at the last token."""

# S sequences · D hidden

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import nn

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model
from nalar.plan.model import sequence_flops


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
    """Scores whole sequences, frozen. A score depends on its sequence alone, to the bit."""

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

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """One number each, without bounds. Sequences are passed one by one, equal ones once.

        Side by side they would be faster where they are short, and products of other shapes round otherwise: a reward
        would depend on who else is scored. Long ones fill the machine by themselves.
        """
        known: dict[tuple[int, ...], float] = {}
        for sequence in map(tuple, sequences):
            if sequence not in known:
                known[sequence] = self._score(sequence)
        return [known[tuple(sequence)] for sequence in sequences]

    def _score(self, ids: tuple[int, ...]) -> float:
        if not 0 < len(ids) <= self.model.config.max_position_embeddings:
            raise UserError(
                at="reward model",
                got=f"{len(ids)} ids to score",
                want=f"1 to {self.model.config.max_position_embeddings}, as the model has positions",
            )
        ids_1T = torch.tensor([ids], device=self.model.head_weight.device)
        states_D = self.model(ids_1T).states[0, -1]
        self.flops += sequence_flops(self.model.config, len(ids), backward=False)
        return float(self.model.scores(states_D))


def squashed(score: float) -> float:
    """Between 0 and 1: the sigmoid, without overflow.

    Scores of the Bradley-Terry model have neither bounds nor a zero of their own, and a policy that finds an answer far
    outside of what the model has seen could earn any number. Squashed, a part of the reward is worth its weight at most.
    """
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    return math.exp(score) / (1.0 + math.exp(score))
