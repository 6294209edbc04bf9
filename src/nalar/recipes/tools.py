"""R1-Zero with a calculator at hand: products too large for the model's head, and RL alone to find what helps."""

from nalar.data.config import CallsConfig, CorpusConfig, DocumentWeights, TokenizerConfig
from nalar.evals.config import EvalConfig
from nalar.pipeline.config import ZeroConfig
from nalar.recipes.zero import zero_cpu
from nalar.rl.config import RLConfig
from nalar.sandbox.config import ToolsConfig

PRODUCTS = "arithmetic,min_terms=2,max_terms=2,min_digits=4,max_digits=4,operators=*"


def zero_tools_cpu() -> ZeroConfig:
    """Products of two numbers of four digits: some minutes on two cores."""
    demo = zero_cpu()
    pretrain = demo.pretrain.model_copy(update={"slice_tokens": 1_000_000, "max_slices": 1})
    return demo.model_copy(
        update={
            "recipe": "zero-tools-cpu",
            "tokenizer": TokenizerConfig(vocab_size=288, tools=True),
            "corpus": CorpusConfig(
                weights=DocumentWeights(
                    facts=0, verdicts=0, word_problems=0, conversions=0, search=0, chains=0
                ),
                calls=CallsConfig(),
            ),
            "model": demo.model.model_copy(update={"vocab_size": 288}),
            "pretrain": pretrain,
            "probe": None,
            "rl": RLConfig(steps=40, tasks=(PRODUCTS,), max_tokens=96),
            "evals": EvalConfig(tasks=(PRODUCTS,), max_tokens=96),
            "tools": ToolsConfig(names=("calculator",)),
        }
    )
