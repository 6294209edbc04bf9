"""Stability of training, provoked: attention logits driven up, and batches poisoned. Writes docs/stability.md's plots.

From the root of the repository, a few minutes on two cores:

    PYTHONPATH=src python bench/stability.py

Two experiments on a small model and the demo's corpus. *Logits*: a learning rate far too high, under plain Muon and
under MuonClip with a ceiling of 100; the largest logit of any head is measured exactly after every step. *Poison*: one
gradient is made NaN and one loss 1000 times too large, with and without skipping of spikes, beside a clean run.
"""

import argparse
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import torch

from nalar.data.config import CorpusConfig, PackingConfig, TokenizerConfig
from nalar.data.corpora.procedural import documents
from nalar.data.packing import Packing
from nalar.data.tokenizer import Tokenizer
from nalar.kernels.logprobs import token_logprobs
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.train.pretrain import on_device
from nalar.train.step import Batch, apply_gradients, pretrain_step
from record import Row, record

MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    kv_lora_rank=32,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=16,
    max_position_embeddings=512,
)
TAU = 100.0
Optimizer = Literal["muon", "muonclip"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
NAN_AT, SPIKE_AT = 150, 200


@dataclass(frozen=True)
class Curve:
    name: str
    steps: list[int]
    values: list[float]
    skipped: list[int]


class Data:
    def __init__(self, seed: int) -> None:
        corpus = CorpusConfig()
        sample = islice(documents(corpus, random.Random(0)), 1000)
        tokenizer = Tokenizer.train(sample, TokenizerConfig())
        self.packing = Packing(tokenizer, corpus, PackingConfig(), seed)

    def batch(self, step: int) -> Batch:
        return on_device(self.packing.batch(step), torch.device("cpu"))


def model_of(seed: int) -> Transformer:
    model = Transformer(MODEL)
    model.initialize(seed)
    return model


@torch.no_grad()
def largest_logit(model: Transformer, batch: Batch) -> float:
    seen = model(batch.ids_N, batch.documents, observe="exact").max_logits
    return max(float(layer_H.max()) for layer_H in seen)


def logits(data: Data, name: Optimizer, lr: float, steps: int, seed: int) -> Curve:
    """The largest logit on the batch that a step was made on, after the step."""
    tau = TAU if name == "muonclip" else None
    model = model_of(seed)
    config = OptimConfig(
        name=name, lr=lr, adamw_lr=5e-3, weight_decay=0.0, qk_clip_tau=tau, skip_spikes=False
    )
    optimizer = MuonClip(model.named_parameters(), config)
    values = []
    for step in range(steps):
        batch = data.batch(step)
        pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
        values.append(largest_logit(model, batch))
    return Curve(name, list(range(1, steps + 1)), values, [])


def poisoned(data: Data, name: str, *, poison: bool, skip: bool, steps: int, seed: int) -> Curve:
    """Losses of a run that meets a NaN and a loss 1000 times too large, or does not."""
    model = model_of(seed)
    config = OptimConfig(
        lr=0.007, adamw_lr=5e-3, weight_decay=0.01, skip_spikes=skip, clip_grad_norm=None
    )
    optimizer = MuonClip(model.named_parameters(), config)
    values, skipped = [], []
    for step in range(steps):
        batch = data.batch(step)
        optimizer.zero_grad()
        hidden = model(batch.ids_N, batch.documents)
        logprobs_N, _ = token_logprobs(hidden.states, model.head_weight, batch.targets_N)
        loss = -logprobs_N.mean()
        values.append(float(loss.detach()))
        if poison and step == SPIKE_AT:
            loss = loss * 1000
        if poison and step == NAN_AT:
            loss = loss * float("nan")
        loss.backward()
        outcome = apply_gradients(
            model,
            optimizer,
            loss=loss,
            loads=hidden.loads,
            max_logits=(),
            lr_factor=min(1.0, (step + 1) / 40),
            balance_speed=0.01,
            judge_loss=True,
        )
        if outcome.metrics().skipped:
            skipped.append(step)
    return Curve(name, list(range(1, steps + 1)), values, skipped)


def plot(curves: list[Curve], path: Path, label: str, *, log: bool, window: int) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        means = [
            fmean(curve.values[max(0, i - window + 1) : i + 1]) for i in range(len(curve.values))
        ]
        axes.plot(curve.steps, means, label=curve.name, linewidth=1.2)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(str(path), metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Provoke instability and show what holds it.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=0.03, help="of the experiment on logits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plots", type=Path, default=Path("docs/plots"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/stability-two-cores.json"))
    args = parser.parse_args()
    data = Data(args.seed)
    driven = [logits(data, name, args.lr, args.steps, args.seed) for name in OPTIMIZERS]
    plot(driven, args.plots / "max-logit.svg", "largest attention logit", log=True, window=1)
    settings = {
        "clean": (False, True),
        "poisoned, spikes skipped": (True, True),
        "poisoned, not skipped": (True, False),
    }
    losses = [
        poisoned(data, name, poison=poison, skip=skip, steps=args.steps, seed=args.seed)
        for name, (poison, skip) in settings.items()
    ]
    plot(losses, args.plots / "poison.svg", "loss, mean of 20 steps", log=False, window=20)
    rows = [Row(f"largest_logit_{c.name}", max(c.values), "logit") for c in driven]
    for curve in losses:
        name = curve.name.replace(", ", "_").replace(" ", "_")
        rows.append(Row(f"final_loss_{name}", fmean(curve.values[-50:]), "nat/token"))
        rows.append(Row(f"skipped_{name}", len(curve.skipped), "steps"))
    record(args.out, "python bench/stability.py", rows)


if __name__ == "__main__":
    main()
