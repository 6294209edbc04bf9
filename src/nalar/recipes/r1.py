"""The whole R1 recipe: at the size of a laptop, as a test, as published, and from a checkpoint of one's own."""

from collections.abc import Callable, Mapping
from typing import Any

from nalar.data.config import CorpusConfig, DocumentWeights, PackingConfig, TokenizerConfig
from nalar.evals.config import EvalConfig
from nalar.model.config import ModelConfig
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.r1_config import R1Config
from nalar.recipes.zero import zero_cpu
from nalar.rl.config import RLConfig
from nalar.rl.presets import PRESETS
from nalar.train.config import PretrainConfig

LINEAR = "linear,max_coefficient=5,max_solution=9"
SUMS = "arithmetic,max_terms=2,min_digits=2,max_digits=2,operators=+"
REASONING = (LINEAR, SUMS)
EVERYDAY = ("general", "safety")
_AT_ONCE = {LINEAR: 0.15, SUMS: 0.6}
"""Answers without their work that the base sees, and how many of them are right."""
VOCAB = 448
CAP = 96
"""Tokens of a response, in the small world."""

_NONE = DocumentWeights(facts=0, verdicts=0, word_problems=0, conversions=0, search=0, chains=0)


def r1_cpu() -> R1Config:
    """Every stage with a model of 0.3M parameters, in 15 minutes on one core of a server."""
    return _small(
        "r1-cpu",
        pretrain=_pretrain(_mixture(), slices=2),
        student=_pretrain(_dense(), slices=1, path="@base", slice_tokens=2_000_000),
    )


def r1_tiny() -> R1Config:
    """The same stages in about a minute, for tests: what they learn is not worth reporting."""
    short: dict[str, Any] = {"slice_tokens": 120_000, "log_every_steps": 5}
    config = _small(
        "r1-tiny",
        pretrain=_pretrain(_mixture(), slices=1, **short),
        student=_pretrain(_dense(), slices=1, path="@base", **short),
    ).model_dump()
    for stage in ("zero", "rl1", "rl2", "on_policy"):
        config[stage]["rl"] |= {"steps": 2, "prompts_per_step": 4, "group_size": 4}
        config[stage]["rl"]["alarms"] |= {"held_out_every_steps": None, "audit_every_steps": None}
    config["rl2"]["rl"]["reward"]["model_rewards_last_steps"] = 1
    for stage in ("cold_start_data", "rejection_sampling"):
        # A base that has seen so little solves next to nothing.
        config[stage] |= {"problems_per_task": 48, "samples": 2}
        config[stage]["filters"] |= {"correct": False, "thought": False, "language": None}
        config[stage]["rewrite"] = None
    for stage in ("cold_start", "sft", "distil"):
        config[stage] |= {"epochs": 1, "packing": {"step_tokens": 512, "document_tokens": 160}}
    for stage in ("preference_model", "safety_model"):
        config[stage] |= {"pairs": 64}
    config["measure"]["evals"] |= {"problems": 4, "k": 2}
    return R1Config.model_validate(config)


def _small(recipe: str, *, pretrain: ZeroConfig, student: ZeroConfig) -> R1Config:
    """As R1 has it: the base, R1-Zero, Dev1, Dev2, Dev3, R1, a student; all sizes the small world's."""
    return R1Config.model_validate(
        {
            "recipe": recipe,
            "device": "cpu",
            "pretrain": pretrain,
            "zero": _rl("@base", REASONING, steps=100),
            "cold_start_data": _collect("@zero", problems_per_task=300, samples=4),
            "cold_start": _sft("@base", "@cold_start_data"),
            "rl1": _rl("@cold_start", REASONING, steps=60, reward=_IN_ENGLISH),
            "rejection_sampling": _collect(
                "@rl1",
                problems_per_task=1000,
                samples=4,
                no_thinking_frac=0.3,
                cut_thought_frac=0.1,
                general=EVERYDAY,
                general_per_task=800,
            ),
            "sft": _sft("@base", "@rejection_sampling"),
            "preference_model": {"kind": "preference", "model": "@sft", "pairs": 6000},
            "safety_model": {"kind": "safety", "model": "@sft", "pairs": 6000},
            "rl2": _rl(
                "@sft",
                (*REASONING, *EVERYDAY),
                steps=100,
                prompts_per_step=24,
                temperature=0.7,
                no_thinking_frac=0.33,
                # At the rate of the stages before, reasoning is forgotten.
                lr=1.5e-4,
                schedule={"warmup_steps": 5, "stable_frac": 0.9},
                # Of theirs the last 400 of 1,700: a fourth of so few steps would move nothing.
                reward=_IN_ENGLISH | _by_models(last_steps=40),
            ),
            "student": student,
            "distil": _sft("@student", "@rejection_sampling"),
            "on_policy": _rl(
                "@distil",
                REASONING,
                steps=40,
                distil={"teacher": "@rl2"},
                reward={"correct": 0.0, "well_formed": 0.0},
            ),
            "measure": {
                "evals": {
                    "tasks": (*REASONING, *EVERYDAY),
                    "problems": 96,
                    "k": 4,
                    "max_tokens": CAP,
                },
                "thinking_budget": 16,
            },
        }
    )


_IN_ENGLISH: dict[str, Any] = {"language": 0.5, "target_language": "en"}
"""Thoughts in one language: what a reader needs, and what the base does not give."""


def _by_models(last_steps: int) -> dict[str, Any]:
    """Everyday requests and safety by models that score, toward the end alone; format by rule."""
    form = {"correct": 0.0, "well_formed": 0.1}
    return {
        "preference_model": "@preference_model",
        "safety_model": "@safety_model",
        "model_rewards_last_steps": last_steps,
        "by_task": {
            "general": form | {"preference": 1.0},
            "safety": form | {"safety": 1.0, "preference": 0.5},
        },
    }


def _pretrain(
    model: ModelConfig, *, slices: int, path: str | None = None, **changes: Any
) -> ZeroConfig:
    """Attempts of mixed quality, thoughts in two languages at once. path: whose tokenizer it has; None: its own."""
    worked = {"wording": "words", "attempts": 0.8, "pieces": 0.2}
    said = {"attempts": 0.8, "pieces": 0.0, "guess_right_frac": 0.3}
    lessons = [
        # Sums that people know by heart: what can be answered at once.
        *(worked | {"task": task, "guess_right_frac": right} for task, right in _AT_ONCE.items()),
        *(said | {"task": task} for task in EVERYDAY),
    ]
    demo = zero_cpu()
    pretrain = demo.pretrain.model_dump() | {"slice_tokens": 3_000_000, "max_slices": slices}
    return ZeroConfig(
        recipe="base-of-r1",
        model=model,
        tokenizer=TokenizerConfig(vocab_size=VOCAB, path=path),
        corpus=CorpusConfig.model_validate({"weights": _NONE, "lessons": lessons}),
        packing=PackingConfig(),
        pretrain=PretrainConfig.model_validate(pretrain | changes),
        probe=None,
        rl=RLConfig(steps=1, tasks=REASONING, max_tokens=CAP),
        evals=EvalConfig(tasks=REASONING, max_tokens=CAP),
    )


def _mixture() -> ModelConfig:
    return zero_cpu().model.model_copy(update={"vocab_size": VOCAB})


def _dense() -> ModelConfig:
    """A student in the form of Llama, of about as many parameters as a token of the teacher passes."""
    return ModelConfig(
        model_type="llama",
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        n_shared_experts=0,
        kv_lora_rank=None,
        num_key_value_heads=2,
        head_dim=32,
        rope_interleave=False,
        max_position_embeddings=512,
        initializer_range=0.01,
    )


def _rl(model: str, tasks: tuple[str, ...], *, steps: int, **changes: Any) -> dict[str, Any]:
    rl = {"steps": steps, "tasks": tasks, "max_tokens": CAP, "lr": 4e-4} | changes
    return {"model": model, "rl": rl, "evals": {"tasks": tasks, "max_tokens": CAP}}


def _collect(model: str, **changes: Any) -> dict[str, Any]:
    settings = {
        "model": model,
        "tasks": REASONING,
        "temperature": 1.0,
        "max_tokens": CAP,
        "filters": {"language": "en", "max_tokens": CAP},
        "rewrite": "rule",
    }
    return settings | changes


def _sft(model: str, data: str, **changes: Any) -> dict[str, Any]:
    settings = {
        "model": model,
        "data": {"kind": "files", "path": data},
        "packing": {"step_tokens": 2048, "document_tokens": 192},
        "epochs": 2,
        "lr": 1e-3,
    }
    return settings | changes


BASE, PROBLEMS = "base-model", "problems.jsonl"
"""What stands for a folder and for files that the user brings: --base and --problems say where they are."""


def r1_from_hf() -> R1Config:
    """From a checkpoint folder and a file of problems: adapters of low rank, sizes for one GPU."""
    tasks, cap = (PROBLEMS,), 2048

    def rl(model: str, **changes: Any) -> dict[str, Any]:
        settings = {
            "steps": 200,
            "tasks": tasks,
            "prompts_per_step": 16,
            "group_size": 8,
            "max_tokens": cap,
            "lr": 2e-5,
            "micro_batch_tokens": 16_384,
        }
        evals = {"tasks": tasks, "max_tokens": cap}
        lora = {"r": 16, "lora_alpha": 32.0}
        return {
            "model": model,
            "lora": lora,
            "rl": settings | changes,
            "evals": evals,
            "max_prompt_tokens": 512,
        }

    def sft(model: str, data: str) -> dict[str, Any]:
        packing = {"step_tokens": 16_384, "document_tokens": cap + 512}
        lora = {"r": 16, "lora_alpha": 32.0}
        return _sft(model, data, packing=packing, lr=2e-4, lora=lora, micro_batch_tokens=8192)

    def collect(model: str, **changes: Any) -> dict[str, Any]:
        filters = {"language": "en", "max_tokens": cap}
        asked = {"tasks": tasks, "max_tokens": cap, "filters": filters, "rewrite": None}
        return _collect(model, **(asked | changes))

    return R1Config.model_validate(
        {
            "recipe": "r1-from-hf",
            "dtype": "bfloat16",
            "price": {"usd_per_hour": 3.0},  # an assumption: one H200, rented
            "base": BASE,
            "zero": rl("@base"),
            "cold_start_data": collect("@zero", problems_per_task=1000, samples=4),
            "cold_start": sft("@base", "@cold_start_data"),
            "rl1": rl("@cold_start", reward=_IN_ENGLISH),
            "rejection_sampling": collect(
                "@rl1",
                problems_per_task=4000,
                samples=4,
                no_thinking_frac=0.3,
                cut_thought_frac=0.1,
            ),
            "sft": sft("@base", "@rejection_sampling"),
            "rl2": rl("@sft", temperature=0.7, no_thinking_frac=0.2, reward=_IN_ENGLISH),
            "measure": {
                "evals": {"tasks": tasks, "problems": 128, "k": 4, "max_tokens": cap},
                "max_prompt_tokens": 512,
                "thinking_budget": 256,
            },
        }
    )


def r1_literal() -> R1Config:
    """DeepSeek-R1 with the numbers of arXiv:2501.12948v2, from DeepSeek-V3-Base, on 512 H800. To plan with.

    Stated: the RL of all stages (`rl/presets.py`), temperature 0.7 and 1,700 updates of the second stage with models
    that reward in the last 400; fine-tuning for two epochs at 5e-6, down to a tenth by half a cosine, 64 dialogues a
    step, 32,768 tokens; 600k dialogues of reasoning and 200k others, of 5,355 tokens; 66k pairs and 106k labels for
    reward models, the first at 6e-6, 256 a step; students at 1e-4 (1.5B). 16 of their updates are a step here.
    Not stated, and chosen: the steps of the first RL stage (as many as the second has); how many problems and samples
    the dialogues are kept from; how the safety model is trained (as the other). Their cold start was rewritten by
    DeepSeek-V3 and by people: here by rule. Their prompts of everyday use are not public: `general` and `safety` stand
    for them.
    """
    tasks = (PROBLEMS,)
    cap, updates_a_step = 32_768, 16
    steps, last_steps = 1_700 // updates_a_step, 400 // updates_a_step

    def rl(model: str, base: RLConfig, **changes: Any) -> dict[str, Any]:
        given = base.model_dump()
        reward = given["reward"] | changes.pop("reward", {})
        evals = {"tasks": tasks, "max_tokens": cap}
        return {
            "model": model,
            "rl": given | changes | {"reward": reward},
            "evals": evals,
            "max_prompt_tokens": 2048,
        }

    def sft(model: str, data: str, lr: float) -> dict[str, Any]:
        return _sft(
            model,
            data,
            packing={"step_tokens": 64 * _MEAN_TOKENS, "document_tokens": cap},
            lr=lr,
            optimizer="adamw",
            schedule={
                "shape": "cosine",
                "warmup_steps": 0,
                "stable_frac": 0.0,
                "final_lr_frac": 0.1,
            },
            micro_batch_tokens=cap,
            recompute=True,
        )

    def collect(model: str, **changes: Any) -> dict[str, Any]:
        filters = {"language": "en", "max_tokens": cap}
        return _collect(
            model, **({"tasks": tasks, "max_tokens": cap, "filters": filters} | changes)
        )

    def judge(kind: str, data: str, pairs: int) -> dict[str, Any]:
        settings = {"kind": kind, "model": "@sft", "data": data, "pairs": pairs, "lr": 6e-6}
        return settings | {"epochs": 1, "pairs_per_step": 256, "max_tokens": 8192}

    first = PRESETS["r1-literal"](RLConfig(steps=steps, tasks=tasks))
    second = PRESETS["r1-literal"](RLConfig(steps=steps, tasks=(*tasks, *EVERYDAY)))
    return R1Config.model_validate(
        {
            "recipe": "r1-literal",
            "device": "cuda",
            "dtype": "bfloat16",
            "price": {"usd_per_hour": 512 * 2.0},  # 2 USD an hour for each H800, as they count
            "hardware": _H800S,
            "base": "deepseek-v3",
            "zero": rl("@base", PRESETS["r1-zero-literal"](RLConfig(steps=1, tasks=tasks))),
            "cold_start_data": collect("@zero", problems_per_task=10_000, samples=4),
            "cold_start": sft("@base", "@cold_start_data", 5e-6),
            "rl1": rl("@cold_start", first),
            "rejection_sampling": collect(
                "@rl1",
                problems_per_task=150_000,
                samples=4,
                keep_per_problem=4,
                rewrite=None,
                general=EVERYDAY,
                general_per_task=100_000,
            ),
            "sft": sft("@base", "@rejection_sampling", 5e-6),
            "preference_model": judge("preference", "preferences.jsonl", 66_000),
            "safety_model": judge("safety", "safety.jsonl", 106_000),
            "rl2": rl("@sft", second, temperature=0.7, reward=_by_models(last_steps)),
            "student_base": "qwen2.5-1.5b",
            "distil": sft("@student", "@rejection_sampling", 1e-4),
            "measure": {
                "evals": {
                    "tasks": (*tasks, *EVERYDAY),
                    "problems": 500,
                    "k": 16,
                    "temperature": 0.6,
                    "max_tokens": cap,
                },
                "max_prompt_tokens": 2048,
                "thinking_budget": None,
            },
        }
    )


_MEAN_TOKENS = 5_355
"""Of a dialogue of their fine-tuning."""
_H800S: Mapping[str, Any] = {
    "name": "512 H800",
    # Dense bfloat16 of one is 989 TFLOP/s. 35% of it in training is an assumption. 2.7% in sampling makes their R1-Zero
    # come to the hours that they report, and so is no prediction of those.
    "train_flops_per_s": 512 * 0.35 * 989e12,
    "sample_flops_per_s": 512 * 0.027 * 989e12,
    "dialogue_tokens": _MEAN_TOKENS,
}

R1_RECIPES: Mapping[str, Callable[[], R1Config]] = {
    "r1-cpu": r1_cpu,
    "r1-tiny": r1_tiny,
    "r1-from-hf": r1_from_hf,
    "r1-literal": r1_literal,
}
