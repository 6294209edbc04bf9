"""A whole run as one config, by kind: from random weights to a report, RL on a model that is there, fine-tuning.

Imports no torch.
"""

import math
from typing import Literal

from pydantic import Field, field_validator

from nalar.config import Config, ConfigError, lookup
from nalar.data.config import (
    CorpusConfig,
    DataConfig,
    DatasetSource,
    FileSource,
    PackingConfig,
    ProceduralSource,
    Source,
    TokenizerConfig,
)
from nalar.evals.config import EvalConfig, ProbeConfig
from nalar.model.config import LoraConfig, ModelConfig
from nalar.model.families.registry import FAMILIES
from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.plan.cost import PriceConfig
from nalar.rl.config import RLConfig
from nalar.sandbox.config import ToolsConfig
from nalar.tasks.registry import refuse_unknown_task
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


class TaskRunConfig(RunConfig):
    """RL on tasks, with the model measured on held-out problems before and after."""

    rl: RLConfig
    evals: EvalConfig
    max_prompt_tokens: int = Field(default=64, ge=1)
    """Longest prompt, its turn's special tokens included; a task with a longer one is refused."""
    tools: ToolsConfig = ToolsConfig()
    """What the model may call in RL and in evaluations (docs/tools.md)."""

    @field_validator("tools", mode="before")
    @classmethod
    def _off(cls, given: object) -> object:
        """Runs that began when they had no flags say None."""
        return ToolsConfig() if given is None else given

    def model_post_init(self, context: object) -> None:
        RunConfig.model_post_init(self, context)
        for field, words in (("rl.tasks", self.rl.tasks), ("evals.tasks", self.evals.tasks)):
            for word in words:
                refuse_unknown_task(word, at=field)

    @property
    def longest_response(self) -> int:
        """Tokens, of all that is sampled in a run."""
        return max(self.rl.max_tokens, self.evals.max_tokens)

    def refuse_unfit(self, model: ModelConfig) -> None:
        """ConfigError where RL with these settings is not for this model."""
        room = model.max_position_embeddings - self.longest_response
        if room < self.max_prompt_tokens:
            raise ConfigError(
                at="model.max_position_embeddings",
                got=str(model.max_position_embeddings),
                want=f"room for a prompt of max_prompt_tokens={self.max_prompt_tokens} "
                f"and responses of {self.longest_response}",
                hint="a smaller --rl.max-tokens and --evals.max-tokens",
            )
        _refuse_unmovable(model, "rl.balance_speed", self.rl.balance_speed)


class ZeroConfig(TaskRunConfig):
    """Pretrain, probe, evaluate, RL, evaluate again, report."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig
    corpus: CorpusConfig
    packing: PackingConfig
    pretrain: PretrainConfig
    probe: ProbeConfig | None
    """None: nothing is probed, every slice is trained, and whatever follows begins at once."""

    def model_post_init(self, context: object) -> None:
        TaskRunConfig.model_post_init(self, context)
        if self.rl.distil.teacher is not None:
            raise ConfigError(
                at="rl.distil.teacher",
                got=self.rl.distil.teacher,
                want="None: a recipe that begins with random weights has a tokenizer of its own",
                hint="nalar rl --model MODEL --rl.distil.teacher TEACHER",
            )
        self._check_tools()
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
        self.refuse_unfit(self.model)

    @property
    def longest_response(self) -> int:
        """Tokens, of all that is sampled in a run."""
        probed = self.probe.max_tokens if self.probe else 0
        return max(self.rl.max_tokens, self.evals.max_tokens, probed)

    def _check_tools(self) -> None:
        asking = {
            "tools.names": self.tools.names,
            "corpus.calls": self.corpus.calls,
            "corpus.chained_calls": self.corpus.chained_calls,
        }
        wants = [at for at, one in asking.items() if one]
        if wants and self.tokenizer.path is None and not self.tokenizer.tools:
            raise ConfigError(
                at="tokenizer.tools",
                got=f"off, with {' and '.join(wants)}",
                want="a tokenizer that has ids for calls and their outputs",
                hint="--tokenizer.tools",
            )

    def _check_model(self) -> None:
        """What the model must be for its family's folder to say it, and for the recipe to train it."""
        lookup(self.model.model_type, FAMILIES, at="model.model_type").publish_config(self.model)
        if self.model.num_labels is not None:
            raise ConfigError(
                at="model.num_labels",
                got=str(self.model.num_labels),
                want="None: a base predicts tokens",
                hint="`nalar reward` makes a model that scores out of a base",
            )
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
        _refuse_unmovable(self.model, "pretrain.balance_speed", self.pretrain.balance_speed)


class RlRunConfig(TaskRunConfig):
    """RL from a model that is there, on any tasks."""

    recipe: Literal["rl"] = "rl"
    """These settings are of one kind."""
    model: str
    """A run, or a folder with a model and its tokenizer: what RL begins with."""
    lora: LoraConfig | None = None
    """Train adapters of low rank on it, such as r=8,target_modules=q_proj+v_proj (docs/lora.md). None: all weights."""
    rl: RLConfig = RLConfig(steps=120, max_tokens=264)
    evals: EvalConfig = EvalConfig()


class SftConfig(RunConfig):
    """Fine-tune a model on dialogues. Only what the assistant says is in the loss."""

    recipe: Literal["sft"] = "sft"
    """These settings are of one kind."""
    model: str
    """A run, or a folder with a model and its tokenizer: what is fine-tuned."""
    lora: LoraConfig | None = None
    """Train adapters of low rank on it, such as r=8,target_modules=q_proj+v_proj (docs/lora.md). None: all weights."""
    data: Source
    """Dialogues: a file, a folder, a glob or hf:ID, with settings such as ,field=turns (docs/data.md)."""
    cache_dir: str = DataConfig().cache_dir
    """Where the dialogues are kept as token ids."""
    max_bad_frac: float = Field(default=DataConfig().max_bad_frac, ge=0, le=1)
    """Records that cannot be used are skipped and counted; more than this share is an error."""
    held_out_frac: float = Field(default=0.05, ge=0, lt=1)
    """Dialogues, chosen by a hash, that are never trained on: the loss on them is measured before and after."""
    packing: PackingConfig = PackingConfig(step_tokens=4096, document_tokens=512)
    """Whole dialogues fill a step, so step_tokens is a mean; those of more than document_tokens are left out."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the dialogues. After each the run saves."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak step size of every parameter, for models as small as the recipes'; DeepSeek-R1 had 5e-5."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: matrices under Muon, the rest under AdamW, as the recipes pretrain. Adapters are under AdamW always."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest global norm of the gradients. None: not clipped."""
    schedule: ScheduleConfig = ScheduleConfig(
        shape="cosine", warmup_steps=5, stable_frac=0.0, final_lr_frac=0.1
    )
    """Its horizon is all epochs."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one forward and backward pass at most (one dialogue at least). None: the whole step's."""
    mtp_loss_weight: float = Field(default=0.0, ge=0)
    """Of multi-token prediction. 0: its blocks, if there are any, are not trained."""
    recompute: bool = False
    """Run each block again in the backward pass instead of keeping what it computed."""
    compile: bool = False
    """Run blocks as torch.compile makes them, as in pretraining."""
    log_every_steps: int = Field(default=10, ge=1)
    save_every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps from one checkpoint to the next, beside the end of each epoch. None: only there."""

    def model_post_init(self, context: object) -> None:
        RunConfig.model_post_init(self, context)
        if isinstance(self.data, ProceduralSource) or self.data.weight != 1:
            raise ConfigError(
                at="data",
                got=f"{self.data.where} with weight={self.data.weight}",
                want="one source of dialogues, without a weight",
            )
        if self.lora is not None and self.mtp_loss_weight:
            raise ConfigError(
                at="mtp_loss_weight",
                got=f"{self.mtp_loss_weight} with lora",
                want="0: blocks of multi-token prediction have no adapters",
            )
        if self.packing.step_tokens < self.packing.document_tokens:
            raise ConfigError(
                at="packing.step_tokens",
                got=str(self.packing.step_tokens),
                want=f"room for a dialogue of packing.document_tokens={self.packing.document_tokens}",
            )

    @property
    def dialogues(self) -> FileSource | DatasetSource:
        """The source, as one of dialogues."""
        assert not isinstance(self.data, ProceduralSource)
        return self.data.model_copy(update={"content": "dialogue"})

    @property
    def reading(self) -> DataConfig:
        return DataConfig(
            sources=(self.dialogues,), cache_dir=self.cache_dir, max_bad_frac=self.max_bad_frac
        )

    def training(self, epoch_tokens: int) -> PretrainConfig:
        """The same as settings of the loop: an epoch is a slice. The routers' bias stays as it is."""
        return PretrainConfig(
            slice_tokens=epoch_tokens,
            max_slices=self.epochs,
            optim=OptimConfig(
                name=self.optimizer,
                lr=self.lr,
                adamw_lr=self.lr,
                weight_decay=self.weight_decay,
                clip_grad_norm=self.clip_grad_norm,
            ),
            schedule=self.schedule,
            micro_batch_tokens=self.micro_batch_tokens,
            balance_speed=0.0,
            mtp_loss_weight=self.mtp_loss_weight,
            recompute=self.recompute,
            compile=self.compile,
            log_every_steps=self.log_every_steps,
            save_every_steps=self.save_every_steps,
        )


def lora_of(config: RunConfig) -> LoraConfig | None:
    """The adapters that a run trains. None: it trains all weights."""
    return config.lora if isinstance(config, SftConfig | RlRunConfig) else None


class RewardRunConfig(RunConfig):
    """Train a model that scores answers, and test it on judgements that it has not seen."""

    recipe: Literal["reward"] = "reward"
    """These settings are of one kind."""
    kind: Literal["preference", "safety"]
    """preference: which of two answers is better, by the final answer alone. safety: whether thought and answer are
    safe."""
    model: str
    """A run, or a folder with a model and its tokenizer: what it is made of. One that scores already goes on."""
    data: str = "procedural"
    """Judgements: a JSONL file (docs/reward-models.md), or `procedural`: made from tasks that rate answers."""
    tasks: tuple[str, ...] | None = None
    """Of procedural judgements. None: `general` for preference, `safety` for safety."""
    pairs: int | None = Field(default=None, ge=1)
    """Judgements to train on: of procedural ones so many are made, of a file at most so many are taken. None: 4,000, or
    all of the file."""
    held_out_frac: float = Field(default=0.1, gt=0, lt=1)
    """Tested on and never trained on: of a file the conversations that a hash chooses; of procedural judgements as many
    more, of the tasks' test problems."""
    min_gap: float = Field(default=0.3, gt=0, le=1)
    """Of procedural pairs: by how much qualities are apart at least; labels are half as far from the border. (R1: more
    than 1 of its judge's points.)"""
    balance_lengths: bool = True
    """Leave out pairs of a file until better and worse sides are as long as each other."""
    max_tokens: int = Field(default=512, ge=2)
    """Judgements with a longer side, prompt included, are left out and counted."""
    epochs: int = Field(default=1, ge=0)
    """Passes over the judgements. 0: a model that scores already is tested as it is."""
    pairs_per_step: int = Field(default=32, ge=1)
    """Judgements of an optimizer step; R1 had 256."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak step size of every parameter, for models as small as the recipes'; R1 had 6e-6."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    """muon: matrices under Muon, the rest under AdamW, as the recipes pretrain."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    """Largest global norm of the gradients. None: not clipped."""
    schedule: ScheduleConfig = ScheduleConfig(
        shape="cosine", warmup_steps=5, stable_frac=0.0, final_lr_frac=0.1
    )
    """Its horizon is all epochs."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one forward and backward pass at most (one judgement at least). None: the whole step's."""
    recompute: bool = False
    """Run each block again in the backward pass instead of keeping what it computed."""
    log_every_steps: int = Field(default=10, ge=1)
    save_every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps from one checkpoint to the next, beside the end of each epoch. None: only there."""

    def model_post_init(self, context: object) -> None:
        RunConfig.model_post_init(self, context)
        if self.is_procedural:
            for word in self.task_words:
                refuse_unknown_task(word, at="tasks")
        elif self.tasks is not None:
            raise ConfigError(
                at="tasks",
                got=f"{', '.join(self.tasks) or 'none'} with data={self.data}",
                want="None: a file brings its judgements along",
            )
        elif not self.data.endswith(".jsonl"):
            raise ConfigError(at="data", got=repr(self.data), want="procedural, or a .jsonl file")

    @property
    def is_procedural(self) -> bool:
        return self.data == "procedural"

    @property
    def task_words(self) -> tuple[str, ...]:
        return self.tasks or (("general",) if self.kind == "preference" else ("safety",))

    @property
    def wanted(self) -> int | None:
        """Judgements to train on. None: all there are."""
        return _USUAL_PAIRS if self.pairs is None and self.is_procedural else self.pairs

    def training(self, epoch_tokens: int) -> PretrainConfig:
        """The same as settings of the loop: an epoch is a slice. The routers' bias stays as it is."""
        return PretrainConfig(
            slice_tokens=epoch_tokens,
            max_slices=max(self.epochs, 1),
            optim=OptimConfig(
                name=self.optimizer,
                lr=self.lr,
                adamw_lr=self.lr,
                weight_decay=self.weight_decay,
                clip_grad_norm=self.clip_grad_norm,
            ),
            schedule=self.schedule,
            micro_batch_tokens=self.micro_batch_tokens,
            balance_speed=0.0,
            recompute=self.recompute,
            log_every_steps=self.log_every_steps,
            save_every_steps=self.save_every_steps,
        )


_USUAL_PAIRS = 4000
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


def _refuse_unmovable(model: ModelConfig, name: str, speed: float) -> None:
    """ConfigError where routers are to be balanced by a bias that they do not have."""
    if speed and model.n_routed_experts and model.topk_method == "greedy":
        raise ConfigError(
            at=name,
            got=f"{speed} with model.topk_method='greedy'",
            want="0: the router has no bias to move",
        )
