"""The loop of pretraining: a slice of tokens at a time, stoppable after any step."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from nalar.data.packing import Packed
from nalar.kernels.compiler import why_no_compiler
from nalar.kernels.documents import Documents, without_waiting
from nalar.model.compiled import CompiledBlocks
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.optim.schedule import lr_factor
from nalar.train.config import PretrainConfig
from nalar.train.step import Batch, StepOutcome, pretrain_step


class Batches(Protocol):
    """A pure function of the step, so that going on from a step needs nothing but its number."""

    @property
    def tokens_per_step(self) -> int: ...

    def batch(self, step: int) -> Packed: ...


@dataclass(frozen=True)
class Progress:
    """Where pretraining is after a step."""

    step: int
    """Steps done, over all slices."""
    tokens: int
    slice_index: int
    lengths: tuple[int, ...]
    """Tokens of each document of the step."""
    outcome: StepOutcome
    """Still on the device."""


def steps_per_slice(config: PretrainConfig, tokens_per_step: int) -> int:
    return max(1, round(config.slice_tokens / tokens_per_step))


def pretrain_slice(
    model: Transformer,
    optimizer: MuonClip,
    batches: Batches,
    config: PretrainConfig,
    *,
    first_step: int,
    on_step: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> int:
    """Train from `first_step` to the end of its slice, or until told to stop; returns steps done in all."""
    per_slice = steps_per_slice(config, batches.tokens_per_step)
    total = per_slice * config.max_slices
    slice_index = first_step // per_slice
    step = first_step
    device = model.head_weight.device
    model.train()
    model.recompute = config.recompute
    model.compiled = compiled_blocks(device) if config.compile else None
    while step < (slice_index + 1) * per_slice and not should_stop():
        factor = lr_factor(config.schedule, step, total, tokens_per_step=batches.tokens_per_step)
        packed = batches.batch(step)
        outcome = pretrain_step(
            model,
            optimizer,
            [on_device(part, device) for part in packed.split(config.micro_batch_tokens)],
            lr_factor=factor,
            balance_speed=config.balance_speed * factor,
            balance_loss_weight=config.balance_loss_weight,
            mtp_loss_weight=config.mtp_loss_weight,
        )
        step += 1
        on_step(
            Progress(step, step * batches.tokens_per_step, slice_index, packed.lengths, outcome)
        )
    return step


def compiled_blocks(device: torch.device) -> CompiledBlocks | None:
    """None, and once a warning, where this machine cannot compile: training goes on as without."""
    reason = why_no_compiler(device)
    if reason is None:
        return CompiledBlocks()
    _warn_once(reason)
    return None


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"pretrain.compile: this machine cannot compile ({reason}); training goes on without. "
        "torch.compile wants a C++ compiler: on Debian and Ubuntu, apt install g++",
        stacklevel=3,
    )


def on_device(packed: Packed, device: torch.device) -> Batch:
    return Batch(
        without_waiting(torch.from_numpy(packed.ids_N).long(), device),
        without_waiting(torch.from_numpy(packed.targets_N).long(), device),
        Documents.of(packed.lengths, device=device),
        None
        if packed.counted_N is None
        else without_waiting(torch.from_numpy(packed.counted_N), device),
    )
