"""R1-Zero at the size of a laptop: random weights, a procedural corpus, pure RL."""

from nalar.data.config import CorpusConfig, PackingConfig, TokenizerConfig
from nalar.evals.config import EvalConfig, ProbeConfig
from nalar.model.config import ModelConfig
from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.pipeline.config import ZeroConfig
from nalar.plan.cost import PriceConfig
from nalar.rl.config import RLConfig
from nalar.train.config import PretrainConfig


def zero_cpu() -> ZeroConfig:
    """The demo: about eight minutes on two cores."""
    return ZeroConfig(
        recipe="zero-cpu",
        device="cpu",
        model=ModelConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=192,
            moe_intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            n_routed_experts=8,
            num_experts_per_tok=2,
            kv_lora_rank=48,
            qk_nope_head_dim=16,
            qk_rope_head_dim=16,
            v_head_dim=32,
            max_position_embeddings=512,
            initializer_range=0.01,
        ),
        tokenizer=TokenizerConfig(),
        corpus=CorpusConfig(),
        packing=PackingConfig(),
        pretrain=PretrainConfig(
            slice_tokens=2_250_000,
            max_slices=3,
            optim=OptimConfig(lr=0.007, adamw_lr=5e-3, weight_decay=0.01, qk_clip_tau=30.0),
            schedule=ScheduleConfig(warmup_steps=40, stable_frac=0.0),
        ),
        probe=ProbeConfig(),
        rl=RLConfig(
            steps=150,
            max_tokens=264,
        ),
        evals=EvalConfig(),
        price=PriceConfig(),
    )


def zero_tiny() -> ZeroConfig:
    """The same code in under a minute, for tests: it learns nothing worth reporting."""
    full = zero_cpu()
    return full.model_copy(
        update={
            "recipe": "zero-tiny",
            "pretrain": full.pretrain.model_copy(
                update={"slice_tokens": 120_000, "max_slices": 2, "log_every_steps": 5}
            ),
            "probe": ProbeConfig(problems=8, min_recall=0.0, max_false_frac=1.0, min_hits=0),
            "rl": full.rl.model_copy(
                update={"steps": 4, "prompts_per_step": 4, "group_size": 4, "save_every_steps": 2}
            ),
            "evals": full.evals.model_copy(update={"problems": 16, "k": 4}),
        }
    )
