"""A base model of one's own corpus, at the size of a laptop. The sources are named on the command line."""

from nalar.data.config import CorpusConfig, DataConfig, PackingConfig, TokenizerConfig
from nalar.evals.config import EvalConfig
from nalar.model.config import ModelConfig
from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.pipeline.config import ZeroConfig
from nalar.plan.cost import PriceConfig
from nalar.rl.config import RLConfig
from nalar.train.config import PretrainConfig


def base_cpu() -> ZeroConfig:
    """For `nalar pretrain`: a tokenizer of 4,096 ids learned from the sources, and no probe."""
    return ZeroConfig(
        recipe="base-cpu",
        device="cpu",
        data=DataConfig(sources=()),
        model=ModelConfig(
            vocab_size=4096,
            hidden_size=128,
            intermediate_size=384,
            moe_intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            n_routed_experts=8,
            num_experts_per_tok=2,
            kv_lora_rank=64,
            qk_nope_head_dim=16,
            qk_rope_head_dim=16,
            v_head_dim=32,
            max_position_embeddings=512,
            initializer_range=0.01,
        ),
        tokenizer=TokenizerConfig(vocab_size=4096, signs_apart=False),
        corpus=CorpusConfig(),
        packing=PackingConfig(step_tokens=4096, document_tokens=512),
        pretrain=PretrainConfig(
            slice_tokens=1_000_000,
            max_slices=4,
            # As in zero-cpu, for want of a sweep on a corpus that nobody knows yet.
            optim=OptimConfig(lr=0.007, adamw_lr=5e-3, weight_decay=0.01, qk_clip_tau=30.0),
            schedule=ScheduleConfig(warmup_steps=40, stable_frac=0.0),
        ),
        probe=None,
        rl=RLConfig(steps=120, max_tokens=264),
        evals=EvalConfig(),
        price=PriceConfig(),
    )
