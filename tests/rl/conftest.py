"""Models of two sizes, a tokenizer, and rollouts written by hand."""

from collections.abc import Callable, Sequence

import pytest

from nalar.data.dialogue import Parsed
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import FinishReason
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.pipeline.corpus import named_or_learned
from nalar.recipes.zero import zero_cpu
from nalar.rl.config import RLConfig
from nalar.rl.response import Response
from nalar.rl.rollout import Rollout
from nalar.tasks.problem import Problem, Score

MakeRollout = Callable[..., Rollout]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The demo's own."""
    return named_or_learned(zero_cpu())


@pytest.fixture
def toy_model() -> Transformer:
    """Twelve tokens, two layers, one of them a mixture."""
    config = ModelConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=12,
        max_position_embeddings=64,
        initializer_range=0.15,
    )
    model = Transformer(config)
    model.initialize(seed=0)
    return model


@pytest.fixture
def rl_config() -> Callable[..., RLConfig]:
    """The defaults with a plain AdamW, and what a test changes."""

    def make(**changes: object) -> RLConfig:
        plain = {"steps": 10, "lr": 1e-2, "weight_decay": 0.0, "clip_grad_norm": None}
        return RLConfig(**(plain | changes))

    return make


@pytest.fixture
def make_rollout() -> MakeRollout:
    """A rollout of given ids; logprobs of -1 each where none are given."""

    def make(
        prompt: Sequence[int],
        response: Sequence[int],
        *,
        reward: float = 0.0,
        logprobs: Sequence[float] | None = None,
        finish: FinishReason = "stop",
        drawn: Sequence[bool] | None = None,
    ) -> Rollout:
        logprobs = [-1.0] * len(response) if logprobs is None else logprobs
        return Rollout(
            problem=Problem(task="chain_sum", key="chain_sum:1+1", prompt="1+1"),
            prompt_ids=tuple(prompt),
            response=Response(
                token_ids=tuple(response),
                logprobs=tuple(logprobs),
                drawn=(True,) * len(response) if drawn is None else tuple(drawn),
                versions=(0,) * len(response),
                finish_reason=finish,
            ),
            parsed=Parsed("", "", closed=finish == "stop", well_formed=finish == "stop"),
            score=Score(correct=False, well_formed=False),
            reward=reward,
        )

    return make
