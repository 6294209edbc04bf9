"""A whole run from random weights to a report, as one config. Imports no torch."""

import math
from typing import Literal

from nalar.config import Config, ConfigError, lookup
from nalar.data.config import CorpusConfig, DataConfig, PackingConfig, TokenizerConfig
from nalar.evals.config import EvalConfig, ProbeConfig
from nalar.model.config import ModelConfig
from nalar.model.families.registry import FAMILIES
from nalar.plan.cost import PriceConfig
from nalar.rl.config import RLConfig
from nalar.tasks.registry import TASKS
from nalar.train.config import CheckpointConfig, PretrainConfig


class RunConfig(Config):
    """What every run has, whatever it trains."""

    recipe: str
    """The name that this config came from."""
    seed: int = 0
    """Sets weights, corpus, prompts and samples."""
    threads: int = 2
    """CPU threads; the same seed and threads give the same weights to the bit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lies and computes. auto: cuda where torch finds a GPU, else cpu; a run stays where it began."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights, activations and checkpoints. The optimizer's state, router and output head compute in float32."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    price: PriceConfig = PriceConfig()
    tensorboard: bool = False
    """Write TensorBoard files beside metrics.jsonl; wants `pip install 'nalar[tensorboard]'`."""

    def model_post_init(self, _context: object) -> None:
        _refuse_endless(self)
        if not 0 <= self.seed < 2**63:
            raise ConfigError(at="seed", got=str(self.seed), want="a number from 0 to 2**63 - 1")
        if self.threads < 1:
            raise ConfigError(at="threads", got=str(self.threads), want="at least 1")


class ZeroConfig(RunConfig):
    """Pretrain, probe, evaluate, RL, evaluate again, report."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig
    corpus: CorpusConfig
    packing: PackingConfig
    pretrain: PretrainConfig
    probe: ProbeConfig | None
    """None: nothing is probed, every slice is trained, and whatever follows begins at once."""
    rl: RLConfig
    evals: EvalConfig

    def model_post_init(self, context: object) -> None:
        RunConfig.model_post_init(self, context)
        for field, names in (("rl.tasks", self.rl.tasks), ("evals.tasks", self.evals.tasks)):
            for name in names:
                lookup(name, TASKS, at=field)
        if self.model.vocab_size != self.tokenizer.vocab_size:
            raise ConfigError(
                at="model.vocab_size",
                got=f"{self.model.vocab_size} with tokenizer.vocab_size={self.tokenizer.vocab_size}",
                want="the same number: every id that the model can sample means something",
            )
        self._check_model()
        if self.packing.document_tokens > self.model.max_position_embeddings:
            raise ConfigError(
                at="packing.document_tokens",
                got=str(self.packing.document_tokens),
                want=f"at most model.max_position_embeddings={self.model.max_position_embeddings}",
            )
        longest = self.longest_response
        room = self.model.max_position_embeddings - longest
        if room < PROMPT_TOKENS:
            raise ConfigError(
                at="model.max_position_embeddings",
                got=str(self.model.max_position_embeddings),
                want=f"room for a prompt of {PROMPT_TOKENS} tokens and responses of {longest}",
            )

    @property
    def longest_response(self) -> int:
        """Tokens, of all that is sampled in a run."""
        probed = self.probe.max_tokens if self.probe else 0
        return max(self.rl.max_tokens, self.evals.max_tokens, probed)

    def _check_model(self) -> None:
        """What the model must be for its family's folder to say it, and for the recipe to train it."""
        lookup(self.model.model_type, FAMILIES, at="model.model_type").publish_config(self.model)
        if self.model.qk_norm and self.pretrain.optim.qk_clip_tau is not None:
            raise ConfigError(
                at="pretrain.optim.qk_clip_tau",
                got=f"{self.pretrain.optim.qk_clip_tau} with model.qk_norm",
                want="None: norms of queries and keys bound the logits",
            )
        depth, weight = self.model.num_nextn_predict_layers, self.pretrain.mtp_loss_weight
        if bool(depth) != (weight > 0):
            raise ConfigError(
                at="pretrain.mtp_loss_weight",
                got=f"{weight} with model.num_nextn_predict_layers={depth}",
                want="above 0 where the model has blocks of multi-token prediction, else 0",
                hint="--model.num-nextn-predict-layers 1 --pretrain.mtp-loss-weight 0.3",
            )
        for name, speed in (
            ("pretrain.balance_speed", self.pretrain.balance_speed),
            ("rl.balance_speed", self.rl.balance_speed),
        ):
            if speed and self.model.n_routed_experts and self.model.topk_method == "greedy":
                raise ConfigError(
                    at=name,
                    got=f"{speed} with model.topk_method='greedy'",
                    want="0: the router has no bias to move",
                )


PROMPT_TOKENS = 64
"""No prompt of the demo's tasks is longer."""
_LARGEST = 2**53
"""No setting is larger: what is counted from them still fits a float."""


def _refuse_endless(config: Config, prefix: str = "") -> None:
    """ConfigError where a number anywhere in the config is not finite, or is beyond all use."""
    for name, value in config:
        at = prefix + name
        if isinstance(value, Config):
            _refuse_endless(value, f"{at}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(at=at, got=str(value), want="a finite number")
        elif isinstance(value, int) and at != "seed" and abs(value) > _LARGEST:
            raise ConfigError(
                at=at, got="a number too large to count with", want=f"at most {_LARGEST}"
            )
