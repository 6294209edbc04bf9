"""What a recipe will take: parameters, tokens, operations, memory, disk, time, money. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from nalar.data.config import PackingConfig
from nalar.model.config import LoraConfig, ModelConfig
from nalar.pipeline.collect_config import CollectConfig
from nalar.pipeline.config import (
    RewardRunConfig,
    RlRunConfig,
    RunConfig,
    SftConfig,
    TaskRunConfig,
    ZeroConfig,
    lora_of,
)
from nalar.plan.cost import BYTES_OF, FP32_BYTES, Dtype, moving_bytes, training_memory
from nalar.plan.model import adapter_params, count_parameters, flops_per_token, sampling_flops
from nalar.rl.config import RLConfig

# Assumptions, as a run of zero-cpu gave on two cores of a server: a model of 0.3M parameters, where overhead and not
# arithmetic sets the pace. A larger model or more cores do better: the estimate errs on the slow side.
TRAIN_FLOPS_PER_S = 52e9
SAMPLE_FLOPS_PER_S = 10.4e9
SECONDS_FOR_START_S = 10.0
INTERPRETER_BYTES = 400_000_000
LOGS_BYTES = 20_000_000
ROW_BYTES, TOKEN_BYTES = 800, 45
"""Of a rollout that is kept: what is written for each, and for each of its tokens."""
PROMPT_TOKENS = 24
"""Mean length of a prompt."""
RESPONSE_FILL_FRAC = 0.4
"""Mean length of a response as a share of its cap."""
DOCUMENT_FILL_FRAC = 0.25
"""Mean context of pretraining: a document as a share of the longest piece."""
_FILL = f"a response fills {RESPONSE_FILL_FRAC:.0%} of its cap"


class StageForecast(BaseModel):
    """An upper bound for pretraining, which may end early, and an estimate for the rest."""

    name: str
    tokens: int
    """Trained on, sampled and read as prompts."""
    flops: float
    wall_s: float
    usd: float


class Forecast(BaseModel):
    """A whole recipe."""

    total_params: int
    active_params: int
    trained_params: int
    """Those of adapters, where such are trained, else all."""
    train_flops_per_token: float
    """Forward and backward, at the mean context of a full row."""
    memory_bytes: int
    """Of the machine."""
    gpu_bytes: int = 0
    """Of the GPU, where `device` says cuda."""
    disk_bytes: int
    stages: list[StageForecast]
    tokens: int
    flops: float
    wall_s: float
    usd: float
    assumptions: list[str]


def forecast(config: ZeroConfig) -> Forecast:
    """Arithmetic on the config under the assumptions that it states."""
    trained = config.pretrain.slice_tokens * config.pretrain.max_slices
    context, peak = _mean_context(config.packing), _rl_peak(config)
    slices = config.pretrain.max_slices if config.checkpoint.keep_slices else 0
    found = _forecast(
        config,
        config.model,
        [_training(config, config.model, "pretrain", trained, context), *_rl(config, config.model)],
        replace(peak, batch_tokens=max(peak.batch_tokens, config.packing.step_tokens)),
        context,
        checkpoints=slices + 2 * config.checkpoint.keep + 1,
    )
    found.disk_bytes += _rollout_bytes(config.rl)
    found.assumptions[-1:-1] = [
        "pretraining uses all its slices; the probe may end it earlier",
        _FILL,
    ]
    return found


def forecast_rl(
    config: RlRunConfig,
    model: ModelConfig,
    teacher: ModelConfig | None = None,
    scorers: Sequence[ModelConfig] = (),
) -> Forecast:
    """The same for RL that begins with a model that is there. teacher and scorers: models that stand beside it."""
    found = _forecast(
        config,
        model,
        _rl(config, model, teacher, scorers),
        _rl_peak(config),
        _rl_context(config.rl),
        checkpoints=config.checkpoint.keep + 1,
    )
    beside = [*scorers, *([teacher] if teacher else [])]
    weights = sum(count_parameters(one).total_params for one in beside)
    weights_bytes = BYTES_OF[config.dtype] * weights
    if config.device == "cuda":
        found.gpu_bytes += weights_bytes
    else:
        found.memory_bytes += weights_bytes
    found.disk_bytes += _rollout_bytes(config.rl)
    found.assumptions[-1:-1] = [_FILL]
    return found


def forecast_sft(config: SftConfig, model: ModelConfig, epoch_tokens: int) -> Forecast:
    """The same for fine-tuning a model on dialogues of so many tokens."""
    batch = config.micro_batch_tokens or config.packing.step_tokens
    epochs = config.epochs if config.checkpoint.keep_slices else 0
    context = _mean_context(config.packing)
    return _forecast(
        config,
        model,
        [_training(config, model, "sft", config.epochs * epoch_tokens, context)],
        _Peak(batch, config.packing.document_tokens, 0, batch < config.packing.step_tokens),
        context,
        checkpoints=epochs + config.checkpoint.keep + 1,
    )


def forecast_collect(config: CollectConfig, model: ModelConfig) -> Forecast:
    """The same for sampling alone: nothing is trained, and nothing is saved but text."""
    problems = config.problems_per_task * len(config.tasks)
    context = PROMPT_TOKENS + config.max_tokens
    tokens, flops = _sampling(model, problems, config.samples, config.max_tokens)
    stage = _stage(config, "collect", tokens, flops, flops / SAMPLE_FLOPS_PER_S)
    found = _forecast(config, model, [stage], _Peak(1, context, 256), context / 2, checkpoints=0)
    weights_bytes = BYTES_OF[config.dtype] * found.total_params
    cache_bytes = BYTES_OF[config.dtype] * model.num_hidden_layers * model.cache_dim
    work_bytes = weights_bytes + 256 * context * cache_bytes
    on_gpu = config.device == "cuda"
    found.memory_bytes = INTERPRETER_BYTES + (0 if on_gpu else work_bytes)
    found.gpu_bytes = work_bytes if on_gpu else 0
    found.disk_bytes += problems * config.samples * ROW_BYTES + tokens * TOKEN_BYTES
    found.assumptions[-1:-1] = [_FILL]
    return found


def forecast_reward(
    config: RewardRunConfig, model: ModelConfig, epoch_tokens: int, steps: int, test_tokens: int
) -> Forecast:
    """The same for a reward model: tokens and steps of an epoch, tokens of the test, each of which is passed twice."""
    step_tokens = epoch_tokens // steps
    batch = min(config.micro_batch_tokens or step_tokens, step_tokens)
    context = DOCUMENT_FILL_FRAC * config.max_tokens / 2
    flops = 2 * test_tokens * flops_per_token(model, context, backward=False)
    test = _stage(config, "reward_test", test_tokens, flops, flops / TRAIN_FLOPS_PER_S)
    trained = _training(config, model, "reward", config.epochs * epoch_tokens, context)
    epochs = config.epochs if config.checkpoint.keep_slices else 0
    return _forecast(
        config,
        model,
        [trained, test] if config.epochs else [test],
        _Peak(batch, config.max_tokens, 0, batch < step_tokens),
        context,
        checkpoints=epochs + config.checkpoint.keep + 1,
    )


@dataclass(frozen=True)
class _Peak:
    """What lies in memory at once beside weights and their state."""

    batch_tokens: int
    row_tokens: int
    samples: int
    """Rows of the cache in sampling."""
    accumulates: bool = True
    """Whether a step has several such batches."""
    has_reference: bool = False
    """Whether RL keeps a second copy of the weights, and saves it."""


def _forecast(
    config: RunConfig,
    model: ModelConfig,
    stages: list[StageForecast],
    peak: _Peak,
    mean_context: float,
    *,
    checkpoints: int,
) -> Forecast:
    """checkpoints: those on the disk at once, at most; the one that is being written is among them."""
    count = count_parameters(model)
    memory_bytes, gpu_bytes = _memory_bytes(config, model, peak)
    lora = lora_of(config)
    copy_bytes = BYTES_OF[config.dtype] * count.total_params
    if lora is not None:
        copy_bytes = moving_bytes(model, lora, config.dtype)
    reference_bytes = copy_bytes * peak.has_reference
    return Forecast(
        total_params=count.total_params,
        active_params=count.active_params,
        trained_params=adapter_params(model, lora) or count.total_params,
        train_flops_per_token=_train_flops(config, model, mean_context),
        memory_bytes=memory_bytes,
        gpu_bytes=gpu_bytes,
        disk_bytes=checkpoints * (_checkpoint_bytes(model, config.dtype, lora) + reference_bytes)
        + LOGS_BYTES,
        stages=stages,
        tokens=sum(s.tokens for s in stages),
        flops=sum(s.flops for s in stages),
        wall_s=SECONDS_FOR_START_S + sum(s.wall_s for s in stages),
        usd=config.price.usd(SECONDS_FOR_START_S) + sum(s.usd for s in stages),
        assumptions=[
            *(["times are a CPU's: a GPU's are not known here"] if gpu_bytes else []),
            f"{TRAIN_FLOPS_PER_S / 1e9:.0f} GFLOP/s in training and "
            f"{SAMPLE_FLOPS_PER_S / 1e9:.0f} in sampling, as two cores of a server gave",
            f"{config.price.usd_per_hour} USD an hour",
        ],
    )


def _mean_context(packing: PackingConfig) -> float:
    return DOCUMENT_FILL_FRAC * packing.document_tokens / 2


def _rl_context(rl: RLConfig) -> float:
    return (PROMPT_TOKENS + RESPONSE_FILL_FRAC * rl.max_tokens) / 2


def _rl_peak(config: TaskRunConfig) -> _Peak:
    samples = max(config.rl.prompts_per_step * config.rl.group_size, 256)
    context = PROMPT_TOKENS + max(config.rl.max_tokens, config.evals.max_tokens)
    has_reference = config.rl.kl.coef is not None
    return _Peak(config.rl.micro_batch_tokens, context, samples, has_reference=has_reference)


def _training(
    config: RunConfig, model: ModelConfig, name: str, tokens: int, context: float
) -> StageForecast:
    each = _train_flops(config, model, context)
    return _stage(config, name, tokens, tokens * each, tokens * each / TRAIN_FLOPS_PER_S)


def _train_flops(config: RunConfig, model: ModelConfig, context: float) -> float:
    """A token, with blocks of multi-token prediction where they can be trained: not beside adapters."""
    adapters = adapter_params(model, lora_of(config))
    return flops_per_token(
        model, context, backward=True, with_mtp=adapters is None, adapter_params=adapters
    )


def _rl(
    config: TaskRunConfig,
    model: ModelConfig,
    teacher: ModelConfig | None = None,
    scorers: Sequence[ModelConfig] = (),
) -> list[StageForecast]:
    """RL, and the evaluations before and after it."""
    rl = config.rl
    tokens, sampling = _sampling(
        model, rl.steps * rl.prompts_per_step, rl.group_size, rl.max_tokens
    )
    context, adapters = _rl_context(rl), adapter_params(model, lora_of(config))
    training = tokens * (
        flops_per_token(model, context, backward=True, adapter_params=adapters)
        + rl.looks * flops_per_token(model, context, backward=False)
        + (flops_per_token(teacher, context, backward=False) if teacher else 0.0)
    )
    steps = sum(rl.reward.models_count(step, rl.steps) for step in range(rl.steps))
    scored = tokens * steps / rl.steps
    training += scored * sum(flops_per_token(one, context, backward=False) for one in scorers)
    seconds = training / TRAIN_FLOPS_PER_S + sampling / SAMPLE_FLOPS_PER_S
    return [
        _evaluate(config, model, "evaluate_base"),
        _stage(config, "rl", tokens, training + sampling, seconds),
        _evaluate(config, model, "evaluate_final"),
    ]


def _rollout_bytes(rl: RLConfig) -> int:
    """Of the steps whose rollouts are kept."""
    every = rl.rollout.save_every_steps
    if every is None:
        return 0
    samples = (rl.steps // every + 2) * rl.prompts_per_step * rl.group_size
    return round(samples * (ROW_BYTES + RESPONSE_FILL_FRAC * rl.max_tokens * TOKEN_BYTES))


def _evaluate(config: TaskRunConfig, model: ModelConfig, name: str) -> StageForecast:
    evals = config.evals
    problems = evals.problems * len(evals.tasks)
    tokens, flops = _sampling(model, problems, evals.k, evals.max_tokens)
    return _stage(config, name, tokens, flops, flops / SAMPLE_FLOPS_PER_S)


def _sampling(model: ModelConfig, prompts: int, samples: int, max_tokens: int) -> tuple[int, float]:
    """Tokens and operations of `samples` responses to each prompt."""
    length = max(1, round(RESPONSE_FILL_FRAC * max_tokens))
    flops = sampling_flops(model, PROMPT_TOKENS, [length] * samples)
    return prompts * (PROMPT_TOKENS + samples * length), prompts * flops


def _stage(
    config: RunConfig, name: str, tokens: int, flops: float, seconds: float
) -> StageForecast:
    return StageForecast(
        name=name, tokens=tokens, flops=flops, wall_s=seconds, usd=config.price.usd(seconds)
    )


def _checkpoint_bytes(model: ModelConfig, dtype: Dtype, lora: LoraConfig | None) -> int:
    """Weights, two numbers of the optimizer for each, masters of rounded ones, embedding and head for draft blocks.

    Where adapters are trained the optimizer's numbers are theirs, and they stand beside the weights.
    """
    count = count_parameters(model)
    copies = 2 * model.num_nextn_predict_layers * count.embedding_params
    weight_bytes, state = BYTES_OF[dtype], 2 if dtype == "float32" else 3
    numbers = count.total_params + count.mtp_params
    if (learned := adapter_params(model, lora)) is not None:
        return weight_bytes * (numbers + copies) + 3 * FP32_BYTES * learned
    return (weight_bytes + state * FP32_BYTES) * numbers + weight_bytes * copies


def _memory_bytes(config: RunConfig, model: ModelConfig, peak: _Peak) -> tuple[int, int]:
    """The larger of training and sampling, a copy that is being saved, and what an interpreter with torch takes.

    Of the machine; then of the GPU, which has the first where it is in use.
    """
    training = training_memory(
        model,
        batch_tokens=peak.batch_tokens,
        row_tokens=peak.row_tokens,
        with_mtp=True,
        dtype=config.dtype,
        on_gpu=config.device == "cuda",
        accumulates=peak.accumulates,
        lora=lora_of(config),
    )
    entry_bytes = BYTES_OF[config.dtype] * model.num_hidden_layers * model.cache_dim
    work_bytes = training.total_bytes + peak.samples * peak.row_tokens * entry_bytes
    # The optimizer's state and a reference are copied for every save, the weights where training goes on meanwhile.
    lora, copy_bytes = lora_of(config), training.parameters_bytes
    if lora is not None:  # what never changes is not copied
        copy_bytes = moving_bytes(model, lora, config.dtype)
    reference_bytes = copy_bytes if peak.has_reference else 0
    weights_bytes = copy_bytes if config.checkpoint.background else 0
    work_bytes += reference_bytes
    rest_bytes = INTERPRETER_BYTES + training.optimizer_bytes + weights_bytes + reference_bytes
    on_gpu = config.device == "cuda"
    return (rest_bytes, work_bytes) if on_gpu else (rest_bytes + work_bytes, 0)
