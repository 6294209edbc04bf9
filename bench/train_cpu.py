"""Training the demo's model on a CPU: tokens a second beside the same transformers classes at their best, in one run.

    GOMP_SPINCOUNT=2000 PYTHONPATH=src python bench/train_cpu.py --out bench/results/train-two-cores.json

Every step trains on the same documents, all candidates in turn. Ours are packed flat and attention stays within each.
transformers gets them the two ways that its users have: padded side by side in three groups of like length, and packed
into rows across which attention runs (less work than ours, and another model of the data); the best of all is its
best, over two ways to run experts (its third, batched_mm, took five times as long) and over torch.compile, as ours has
it, layer by layer. Both use AdamW there, since transformers has no Muon; ours is also shown with MuonClip. The process
keeps freed memory, as the command line does, which serves both.
"""

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nalar.data.corpora.procedural import documents
from nalar.data.packing import Packed, Packing
from nalar.data.tokenizer import Tokenizer
from nalar.machine import keep_freed_memory
from nalar.model.compiled import CompiledBlocks
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.recipes.zero import zero_cpu
from nalar.train.pretrain import on_device
from nalar.train.step import pretrain_step
from record import Row, record

WARM_UP, GROUPS = 4, 3
EXPERTS, WAYS = ("eager", "grouped_mm"), ("padded", "rows", "rows_compiled")
ROW_TOKENS = 256
Step = Callable[[Packed], None]


def ours(model: Transformer, optim: OptimConfig) -> Step:
    optimizer = MuonClip(model.named_parameters(), optim)
    cpu = torch.device("cpu")

    def step(packed: Packed) -> None:
        outcome = pretrain_step(
            model, optimizer, [on_device(packed, cpu)], lr_factor=0.1, balance_speed=0.01
        )
        outcome.metrics()

    return step


def theirs(
    folder: Path, experts: str, *, padded: bool, row_tokens: int, compiled: bool = False
) -> Step:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", experts_implementation=experts
    )
    model.train()
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, foreach=True)

    def step(packed: Packed) -> None:
        optimizer.zero_grad()
        batches = side_by_side(packed) if padded else [in_rows(packed, row_tokens)]
        for batch in batches:
            share = int((batch["labels"] != -100).sum()) / len(packed.ids_N)
            (model(**batch, use_cache=False).loss * share).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def side_by_side(packed: Packed) -> list[dict[str, Any]]:
    """Documents of like length padded together, in a few groups of about equal tokens."""
    docs, at = [], 0
    for n in packed.lengths:
        docs.append([*packed.ids_N[at : at + n].tolist(), int(packed.targets_N[at + n - 1])])
        at += n
    docs.sort(key=len)
    groups: list[list[list[int]]] = [[]]
    for doc in docs:
        full = sum(map(len, groups[-1])) >= len(packed.ids_N) / GROUPS
        groups.append([doc]) if full and len(groups) < GROUPS else groups[-1].append(doc)
    return [_pad(group) for group in groups]


def _pad(group: Sequence[list[int]]) -> dict[str, Any]:
    width = max(map(len, group))
    ids = torch.zeros(len(group), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, doc in enumerate(group):
        ids[row, : len(doc)] = labels[row, : len(doc)] = torch.tensor(doc)
        mask[row, : len(doc)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def in_rows(packed: Packed, row_tokens: int) -> dict[str, Any]:
    ids = torch.from_numpy(packed.ids_N).long().view(-1, row_tokens)
    return {"input_ids": ids, "labels": ids}


def measure(steps: dict[str, Step], batches: Sequence[Packed]) -> dict[str, float]:
    """Median seconds of a step, all candidates in turn on each batch."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i, packed in enumerate(batches):
        for name, step in steps.items():
            started = time.perf_counter()
            step(packed)
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed on a CPU beside transformers.")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    config = zero_cpu()
    sample = islice(documents(config.corpus, random.Random(0)), 4000)
    tokenizer = Tokenizer.train(sample, config.tokenizer)
    packing = Packing(tokenizer, config.corpus, config.packing, seed=0)
    batches = [packing.batch(step) for step in range(args.steps + WARM_UP)]
    adamw = OptimConfig(name="adamw", lr=5e-4, adamw_lr=5e-4)
    steps: dict[str, Step] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, optim in (("adamw", adamw), ("muonclip", config.pretrain.optim)):
            for compiled in (None, CompiledBlocks()):
                model = Transformer(config.model)
                model.initialize(0)
                model.compiled = compiled
                steps[f"ours_{name}{'_compiled' if compiled else ''}"] = ours(model, optim)
        save_model(model, Path(folder), token_ids={})
        for experts, way in itertools.product(EXPERTS, WAYS):
            steps[f"transformers_{experts}_{way}"] = theirs(
                Path(folder),
                experts,
                padded=way == "padded",
                row_tokens=ROW_TOKENS,
                compiled=way == "rows_compiled",
            )
        seconds = measure(steps, batches)
    tokens = config.packing.step_tokens
    best = min(
        (name for name in seconds if name.startswith("transformers")), key=seconds.__getitem__
    )
    rows = [
        Row(f"train_demo_{name}", tokens / s, "tok/s", best, tokens / seconds[best])
        for name, s in seconds.items()
    ]
    rows += [
        Row(f"ratio_{name}", seconds[best] / seconds[name], "x", best, 1.0)
        for name in seconds
        if name.startswith("ours")
    ]
    record(args.out, f"python bench/train_cpu.py --threads {args.threads}", rows)


if __name__ == "__main__":
    main()
