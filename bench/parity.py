"""Whether training learns the same with our kernels: losses of one small model from one seed, side by side."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from nalar.data.packing import Packed
from nalar.kernels import fused_attention, switch
from nalar.model.compiled import CompiledBlocks
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.train.pretrain import on_device
from nalar.train.step import pretrain_step
from record import Row

ROUTED = ("router", "route_sort", "spread_choices", "swiglu", "sum_choices")
KERNELS = ("token_logprobs", "optimizer", *ROUTED)
"""Those of training, by the names of `nalar.kernels.switch`."""
SHAPE = ModelConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    kv_lora_rank=64,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    max_position_embeddings=256,
)
ROWS, TOKENS = 8, 256
TAIL = 20
"""Steps at the end whose mean is compared too."""


def sequences(steps: int) -> Iterator[Packed]:
    """Something to learn: each row counts by a step of its own, with some noise."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        by, at = rng.integers(1, 8, (ROWS, 1)), rng.integers(0, 512, (ROWS, 1))
        rows = (at + by * np.arange(TOKENS + 1)) % SHAPE.vocab_size
        noise = rng.random(rows.shape) < 0.05
        ids = np.where(noise, rng.integers(0, SHAPE.vocab_size, rows.shape), rows)
        ids_32 = ids.astype(np.int32)
        yield Packed(ids_32[:, :-1].ravel(), ids_32[:, 1:].ravel(), (TOKENS,) * ROWS)


def losses(device: torch.device, steps: int, backend: str | None) -> list[float]:
    model = Transformer(SHAPE)
    model.initialize(0)
    model = model.to(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    model.compiled = CompiledBlocks(backend) if backend else None
    config = OptimConfig(lr=2e-3, adamw_lr=2e-3, qk_clip_tau=100.0)
    optimizer = MuonClip(model.named_parameters(), config)
    found = []
    for packed in sequences(steps):
        batch = on_device(packed, device)
        outcome = pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.001)
        found.append(outcome.loss)
    return [float(loss) for loss in found]


@contextmanager
def attention_written_out() -> Iterator[None]:
    """No kernel of torch's for attention either."""
    was = (torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled())
    try:
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.enable_flash_sdp(False)
        fused_attention.choose.cache_clear()
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was[0])
        torch.backends.cuda.enable_flash_sdp(was[1])
        fused_attention.choose.cache_clear()


@dataclass(frozen=True)
class Way:
    """One of the runs that are compared."""

    on: tuple[str, ...] = ()
    """Kernels of our own, of `names`."""
    names: tuple[str, ...] = KERNELS
    is_attention_plain: bool = False
    backend: str | None = None

    def losses(self, device: torch.device, steps: int) -> list[float]:
        off = [name for name in self.names if name not in self.on]
        plain = attention_written_out() if self.is_attention_plain else nullcontext()
        with switch.forced(*off, on=False), plain:
            return losses(device, steps, self.backend)


def parity_rows(
    device: torch.device, kernels: list[str] | None, backend: str, steps: int
) -> list[Row]:
    """Prints losses; rows with the largest difference from the plain form, and of the last steps."""
    names = tuple(kernels or KERNELS)
    ways = {
        "plain": Way((), names, is_attention_plain=True),
        "plain again": Way((), names, is_attention_plain=True),
        "attention": Way((), names),
        **{name: Way((name,), names) for name in names},
        "all": Way(names, names),
        "all, compiled": Way(names, names, backend=backend),
    }
    runs = dict(zip(ways, _run(list(ways.values()), device, steps), strict=True))
    print("step " + " ".join(f"{name:>16.16}" for name in runs))
    for step in sorted({*range(0, steps, 20), steps - 1}):
        print(f"{step:4} " + " ".join(f"{run[step]:16.5f}" for run in runs.values()))
    return rows_of(runs)


def _run(ways: Sequence[Way], device: torch.device, steps: int) -> list[list[float]]:
    """On a GPU side by side, each in a process of its own: such small steps leave it idle."""
    if device.type == "cpu":
        return [way.losses(device, steps) for way in ways]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(ways), os.cpu_count() or 1), spawn) as pool:
        return list(pool.map(partial(Way.losses, device=device, steps=steps), ways))


def rows_of(runs: dict[str, list[float]]) -> list[Row]:
    plain = np.array(runs["plain"])
    rows = []
    for name, run in runs.items():
        apart = np.abs(np.array(run) - plain)
        end = float(np.mean(run[-TAIL:]))
        rows.append(Row(f"parity {name}: largest difference", float(apart.max()), "nats"))
        mean = float(plain[-TAIL:].mean())
        rows.append(Row(f"parity {name}: mean of the last {TAIL}", end, "nats", "plain", mean))
    return rows
