"""A whole run from random weights to a report, as one config. Imports no torch."""

from nalar.config import Config
from nalar.data.config import CorpusConfig, TokenizerConfig
from nalar.evals.config import EvalConfig, ProbeConfig
from nalar.model.config import ModelConfig
from nalar.plan.cost import PriceConfig
from nalar.rl.config import RLConfig
from nalar.train.config import PretrainConfig


class ZeroConfig(Config):
    """Pretrain, probe, evaluate, RL, evaluate again, report."""

    recipe: str
    """The name that this config came from."""
    seed: int = 0
    """Sets weights, corpus, prompts and samples."""
    threads: int = 2
    """CPU threads; the same seed and threads give the same weights to the bit."""
    model: ModelConfig
    tokenizer: TokenizerConfig
    corpus: CorpusConfig
    pretrain: PretrainConfig
    probe: ProbeConfig
    rl: RLConfig
    evals: EvalConfig
    price: PriceConfig
