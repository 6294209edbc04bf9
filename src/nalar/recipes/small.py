"""R1-Zero on one GPU: a model of 14M parameters, three families of tasks, within one hold of 25 minutes."""

from nalar.data.config import CorpusConfig, DocumentWeights, LessonConfig, PackingConfig
from nalar.evals.config import EvalConfig, ProbeConfig
from nalar.model.config import ModelConfig
from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.pipeline.config import ZeroConfig
from nalar.plan.cost import PriceConfig
from nalar.recipes.zero import zero_cpu
from nalar.rl.config import RLConfig
from nalar.tasks.config import ChainSumConfig, CountdownConfig
from nalar.train.config import PretrainConfig

_LINEAR = "linear,max_coefficient=9,max_solution=20"
_CAP = 320


def zero_h200_small() -> ZeroConfig:
    """Countdown with 3 or 4 numbers up to 12, chains of 6 to 10 digits, linear equations (docs/ladder.md)."""
    full = zero_cpu()
    tasks = ("countdown", "chain_sum", _LINEAR)
    return ZeroConfig(
        recipe="zero-h200-small",
        device="cuda",
        dtype="bfloat16",
        threads=4,
        model=ModelConfig(
            vocab_size=320,
            hidden_size=256,
            intermediate_size=768,
            moe_intermediate_size=192,
            num_hidden_layers=6,
            num_attention_heads=8,
            n_routed_experts=16,
            num_experts_per_tok=2,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=32,
            v_head_dim=32,
            max_position_embeddings=512,
            initializer_range=0.01,
        ),
        tokenizer=full.tokenizer,
        corpus=CorpusConfig(
            countdown=CountdownConfig(
                min_numbers=3, num_numbers=4, max_number=12, max_intermediate=100
            ),
            chain_sum=ChainSumConfig(min_terms=6, max_terms=10),
            weights=DocumentWeights(
                facts=0.1,
                verdicts=0.2,
                word_problems=0.02,
                conversions=0.06,
                search=0.3,
                chains=0.16,
            ),
            lessons=(LessonConfig(task=_LINEAR, attempts=0.14, pieces=0.04),),
            max_tries=15,
        ),
        packing=PackingConfig(step_tokens=16_384, document_tokens=448),
        pretrain=PretrainConfig(
            slice_tokens=12_000_000,
            max_slices=4,
            optim=OptimConfig(lr=0.007, adamw_lr=2e-3, weight_decay=0.01, qk_clip_tau=30.0),
            schedule=ScheduleConfig(warmup_steps=40, stable_frac=0.0),
            save_every_steps=200,
        ),
        # Most of Countdown's four-number tries miss: fewer hits than in the demo must do.
        probe=ProbeConfig(problems=240, min_hits=30, max_tokens=_CAP),
        rl=RLConfig(
            steps=300,
            tasks=("countdown", *tasks),
            prompts_per_step=48,
            max_tokens=_CAP,
            lr=3e-4,
            micro_batch_tokens=32_768,
        ),
        evals=EvalConfig(tasks=tasks, max_tokens=_CAP),
        price=PriceConfig(usd_per_hour=3.0),  # an assumption: one H200, rented
    )
