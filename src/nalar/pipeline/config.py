"""A whole run from random weights to a report, as one config. Imports no torch."""

from pydantic import Field

from nalar.config import Config, ConfigError, lookup
from nalar.data.config import CorpusConfig, RowsConfig, TokenizerConfig
from nalar.evals.config import EvalConfig, ProbeConfig
from nalar.model.config import ModelConfig
from nalar.plan.cost import PriceConfig
from nalar.rl.config import RLConfig
from nalar.tasks.registry import TASKS
from nalar.train.config import PretrainConfig


class ZeroConfig(Config):
    """Pretrain, probe, evaluate, RL, evaluate again, report."""

    recipe: str
    """The name that this config came from."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Sets weights, corpus, prompts and samples."""
    threads: int = Field(default=2, ge=1)
    """CPU threads; the same seed and threads give the same weights to the bit."""
    model: ModelConfig
    tokenizer: TokenizerConfig
    corpus: CorpusConfig
    rows: RowsConfig
    pretrain: PretrainConfig
    probe: ProbeConfig
    rl: RLConfig
    evals: EvalConfig
    price: PriceConfig

    def model_post_init(self, _context: object) -> None:
        for field, names in (("rl.tasks", self.rl.tasks), ("evals.tasks", self.evals.tasks)):
            for name in names:
                lookup(name, TASKS, at=field)
        if self.model.vocab_size != self.tokenizer.vocab_size:
            raise ConfigError(
                at="model.vocab_size",
                got=f"{self.model.vocab_size} with tokenizer.vocab_size={self.tokenizer.vocab_size}",
                want="the same number: every id that the model can sample means something",
            )
        if self.rows.row_tokens > self.model.max_position_embeddings:
            raise ConfigError(
                at="rows.row_tokens",
                got=str(self.rows.row_tokens),
                want=f"at most model.max_position_embeddings={self.model.max_position_embeddings}",
            )
        longest = max(self.rl.max_tokens, self.evals.max_tokens, self.probe.max_tokens)
        room = self.model.max_position_embeddings - longest
        if room < PROMPT_TOKENS:
            raise ConfigError(
                at="model.max_position_embeddings",
                got=str(self.model.max_position_embeddings),
                want=f"room for a prompt of {PROMPT_TOKENS} tokens and responses of {longest}",
            )


PROMPT_TOKENS = 64
"""No prompt of the demo's tasks is longer."""
