"""R1-Zero with chains of calls: what is asked of the calculator next depends on what it gave last, up to 24 times."""

from nalar.data.config import (
    ChainedCallsConfig,
    CorpusConfig,
    DocumentWeights,
    PackingConfig,
    TokenizerConfig,
)
from nalar.evals.config import EvalConfig
from nalar.pipeline.config import ZeroConfig
from nalar.recipes.zero import zero_cpu
from nalar.rl.config import RLConfig
from nalar.sandbox.config import ToolsConfig

CHAINS = "hailstone,min_steps=1,max_steps=24"
_LONGEST = 640
"""Tokens of a response: 24 steps of numbers of four digits."""


def zero_chain_cpu() -> ZeroConfig:
    """One to 24 calls a question: about ten minutes on two cores."""
    demo = zero_cpu()
    return demo.model_copy(
        update={
            "recipe": "zero-chain-cpu",
            "tokenizer": TokenizerConfig(vocab_size=300, tools=True),
            "corpus": CorpusConfig(
                weights=DocumentWeights(
                    facts=0, verdicts=0, word_problems=0, conversions=0, search=0, chains=0
                ),
                chained_calls=ChainedCallsConfig(),
            ),
            "model": demo.model.model_copy(
                update={"vocab_size": 300, "max_position_embeddings": 768}
            ),
            "packing": PackingConfig(step_tokens=2048, document_tokens=704),
            "pretrain": demo.pretrain.model_copy(
                update={"slice_tokens": 1_500_000, "max_slices": 1}
            ),
            "probe": None,
            "rl": RLConfig(
                steps=16, tasks=(CHAINS,), max_tokens=_LONGEST, prompts_per_step=8, lr=2e-4
            ),
            "evals": EvalConfig(tasks=(CHAINS,), problems=128, k=4, max_tokens=_LONGEST),
            "tools": ToolsConfig(names=("calculator",), max_calls=32),
        }
    )
