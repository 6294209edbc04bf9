"""What every stage of a run shares: the folder, the clock, the price, what is done, what to resume from."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import Completion
from nalar.evals import units
from nalar.kernels.ceiling import Ceiling, measure_ceiling
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.observer import Observer
from nalar.plan.model import sampling_flops
from nalar.run import Meter, Receipt, Run
from nalar.train.checkpoint import load_checkpoint, load_optimizer, save_checkpoint

STATE_FILE = "state.json"


class _State(BaseModel):
    """`state.json`: what a resumed run need not do again. Only gains keys."""

    model_config = ConfigDict(extra="allow")

    done: list[str] = []
    checkpoints: dict[str, str] = {}


class Sampled(Protocol):
    """A response to a prompt, wherever it came from."""

    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def completion(self) -> Completion: ...


@dataclass
class Work:
    """Tokens and FLOPs since the last receipt."""

    tokens: int = 0
    flops: float = 0.0


@dataclass
class Session:
    """One process working on one run."""

    config: ZeroConfig
    run: Run
    observer: Observer
    should_stop: Callable[[], bool]
    work: Work = field(default_factory=Work)
    recorded_tokens: int = 0
    """Of the stage at hand, in the ledger."""
    recorded_flops: float = 0.0
    """The same."""
    ceiling: Ceiling | None = None
    """None: not measured, and of how much of it is used nothing is said."""
    last_line: tuple[float, float] | None = None
    """FLOP and seconds of the stage at the last line of metrics; None before this session's first."""

    def is_done(self, stage: str) -> bool:
        return stage in self._state().get("done", [])

    def mark_done(self, stage: str) -> None:
        state = self._state()
        self._write_state(state | {"done": [*state.get("done", []), stage]})

    def start(self, stage: str, *, steps: int | None, done: int = 0) -> Meter:
        """Begin or go on with a stage; the meter counts from what earlier sessions have used."""
        earlier = self.run.stage_total(stage)
        self.work = Work()
        self.recorded_tokens = earlier.tokens if earlier else 0
        self.recorded_flops = earlier.flops if earlier else 0.0
        self.last_line = None
        self.observer.stage_started(stage, steps=steps, done=done)
        return Meter(earlier)

    def find_ceiling(self, model: Transformer) -> None:
        """Measure what this machine can do, once a session, and say it."""
        if self.ceiling is not None:
            return
        weight = model.head_weight
        self.ceiling = measure_ceiling(weight.device, weight.dtype)
        side, dtype = self.ceiling.side, str(self.ceiling.dtype).removeprefix("torch.")
        self.observer.note(
            f"ceiling: {units.scaled(self.ceiling.flops_per_s, 'FLOP/s')}, the best of products of "
            f"{side} × {side} {dtype} numbers here and now; MFU is FLOP by formula a second over this"
        )

    def add_sampling(self, model: ModelConfig, groups: Sequence[Sequence[Sampled]]) -> None:
        """Count sampled groups: each prompt was prefilled once."""
        for group in groups:
            lengths = [len(sampled.completion.token_ids) for sampled in group]
            self.work.tokens += sum(lengths)
            self.work.flops += sampling_flops(model, group[0].num_prompt_tokens, lengths)

    def receipt(self, stage: str, meter: Meter) -> None:
        """Put what was used since the last receipt into the ledger."""
        lap = meter.lap()
        self.run.record(
            Receipt(
                name=stage,
                tokens=self.work.tokens,
                flops=self.work.flops,
                wall_s=lap.wall_s,
                usd=self.config.price.usd(lap.wall_s),
                energy_wh=lap.energy_wh,
                started_at=lap.started_at,
            )
        )
        self.recorded_tokens += self.work.tokens
        self.recorded_flops += self.work.flops
        self.work = Work()

    def log(self, stage: str, step: int, meter: Meter, values: Mapping[str, float]) -> None:
        """Write a step's metrics and show them, with time, cost and speed of the stage so far."""
        total = meter.total
        tokens = self.recorded_tokens + self.work.tokens
        shown = dict(values) | {
            "tokens": tokens,
            "wall_s": total.wall_s,
            "usd": self.config.price.usd(total.wall_s),
            "tokens_per_s": tokens / total.wall_s if total.wall_s else 0.0,
        }
        flops = self.recorded_flops + self.work.flops
        if self.ceiling and self.last_line:
            seconds = max(total.wall_s - self.last_line[1], 1e-9)
            used = (flops - self.last_line[0]) / seconds
            shown["mfu_frac"] = used / self.ceiling.flops_per_s
        self.last_line = flops, total.wall_s
        self.run.log_metrics(stage, step, shown)
        self.observer.step(stage, step, shown)

    def save(
        self,
        stage: str,
        step: int,
        model: Transformer,
        optimizer: MuonClip,
        tokenizer: Tokenizer,
    ) -> None:
        """Write a checkpoint, make it the run's model, drop the one it replaces."""
        name = f"{stage}-{step:06d}"
        folder = self.run.checkpoint_dir(name)
        save_checkpoint(
            folder,
            model,
            optimizer,
            {"stage": stage, "step": step},
            token_ids={
                "eos_token_id": tokenizer.end_id,
                "pad_token_id": tokenizer.end_id,
                "bos_token_id": tokenizer.user_id,
            },
            save_tokenizer=tokenizer.save,
        )
        self.run.point_model_to(folder)
        state = self._state()
        replaced = state.get("checkpoints", {}).get(stage)
        self._write_state(state | {"checkpoints": state.get("checkpoints", {}) | {stage: name}})
        if replaced not in (None, name):
            shutil.rmtree(self.run.checkpoint_dir(replaced), ignore_errors=True)

    def checkpoint(self, stage: str) -> str | None:
        """The name of the latest checkpoint of a stage."""
        name: str | None = self._state().get("checkpoints", {}).get(stage)
        return name

    def load(self, stage: str) -> tuple[Transformer, Tokenizer, int]:
        """Model, tokenizer and step of the latest checkpoint of a stage that has one."""
        name = self.checkpoint(stage)
        assert name is not None, f"{stage} has no checkpoint"
        folder = self.run.checkpoint_dir(name)
        resumed = load_checkpoint(folder)
        return resumed.model, Tokenizer.load(folder), int(resumed.progress["step"])

    def load_optimizer(self, stage: str, optimizer: MuonClip) -> None:
        name = self.checkpoint(stage)
        assert name is not None, f"{stage} has no checkpoint"
        load_optimizer(self.run.checkpoint_dir(name), optimizer)

    def _state(self) -> dict[str, Any]:
        path = self.run.path / STATE_FILE
        if not path.exists():
            return {}
        try:
            return _State.model_validate(self.run.read_json(STATE_FILE)).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                at=str(path),
                got=f"{first['msg'].lower()} at {place}",
                want="a file as nalar wrote it",
            ) from error

    def _write_state(self, state: dict[str, Any]) -> None:
        self.run.write_json(STATE_FILE, state)
