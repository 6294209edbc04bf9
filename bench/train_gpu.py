"""Training on a GPU: tokens a second beside the same transformers classes at their best, in one run.

    PYTHONPATH=src python bench/train_gpu.py --out bench/results/train-nvidia-h200.json
    PYTHONPATH=src python bench/train_gpu.py --profile            # where the time of a step goes
    PYTHONPATH=src python bench/train_gpu.py --parity             # losses with and without each kernel
    PYTHONPATH=src python bench/train_gpu.py --attention          # backends of attention beside each other

Random weights in bfloat16, 16 rows of 2,048 random tokens a step, lengths and rows the same for all. A step is all of
it: copying the batch over, forward, backward, clipping, the update. Steps follow each other without waiting, as in
training; the clock is events of the device between them. Ours keeps float32 masters and moments. The peer is
transformers with torch.compile, grouped_mm for its experts and torch's fused AdamW on bfloat16 weights (which keeps no
masters: less work than ours). MuonClip has its ceiling on attention logits at 100, where the model's form allows one.
`--tiny --device cpu` walks the same path without measuring.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from engine import built as random_model
from memory import DENSE, MOE
from nalar.data.packing import Packed
from nalar.kernels.ceiling import measure_ceiling
from nalar.model.compiled import CompiledBlocks
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.plan.model import sequence_flops
from nalar.train.pretrain import on_device
from nalar.train.step import pretrain_step
from profile_step import report
from record import Row, record

QWEN = {
    "model_type": "qwen3",
    "qk_norm": True,
    "rope_interleave": False,
    "n_shared_experts": 0,
}
LARGE: dict[str, Any] = MOE | {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "kv_lora_rank": 384,
}
"""About 3B parameters, 0.5B of them active: wants --rows 8 on a GPU of 140 GB."""
MODELS: dict[str, dict[str, Any]] = {"moe544m": MOE, "moe3b": LARGE, "dense234m": DENSE | QWEN}
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 2,
}
TINY_MOE: dict[str, Any] = {"moe_intermediate_size": 16, "n_routed_experts": 4}
TINY_MOE |= {"num_experts_per_tok": 2, "kv_lora_rank": 16}
WARM_UP = 4
Step = Callable[[Packed], object]


def shape_of(name: str, *, tiny: bool) -> ModelConfig:
    shape = MODELS[name] | {"max_position_embeddings": 2048}
    if tiny:
        shape |= TINY | (TINY_MOE if "n_routed_experts" in shape else {"num_key_value_heads": 1})
    return ModelConfig(**shape)


def built(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    return random_model(config, device, dtype).train().requires_grad_(True)


def optim(name: str, config: ModelConfig) -> OptimConfig:
    if name == "adamw":
        return OptimConfig(name="adamw")
    return OptimConfig(qk_clip_tau=None if config.qk_norm else 100.0)


def ours(model: Transformer, settings: OptimConfig) -> Step:
    optimizer = MuonClip(model.named_parameters(), settings)
    device, speed = model.head_weight.device, 0.001 if model.config.n_routed_experts else 0.0

    def step(packed: Packed) -> object:
        batch = on_device(packed, device)
        return pretrain_step(model, optimizer, [batch], lr_factor=0.1, balance_speed=speed)

    return step


def theirs(
    folder: Path, device: torch.device, dtype: torch.dtype, *, is_moe: bool, compiled: bool
) -> Step:
    import transformers

    experts = {"experts_implementation": "grouped_mm"} if is_moe else {}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", **experts
    )
    model.to(device).train()
    if compiled:
        model.compile()
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=2e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=fused
    )

    def step(packed: Packed) -> object:
        optimizer.zero_grad()
        rows = torch.from_numpy(packed.ids_N).long().view(len(packed.lengths), -1)
        if fused:
            rows = rows.pin_memory()
        ids = rows.to(device, non_blocking=True)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def random_batches(config: ModelConfig, rows: int, tokens: int, count: int) -> list[Packed]:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (count, rows * tokens + 1), dtype=np.int32)
    return [Packed(one[:-1].copy(), one[1:].copy(), (tokens,) * rows) for one in ids]


def step_seconds(step: Step, batches: Sequence[Packed], device: torch.device, steps: int) -> float:
    """Median of a step after those that warm up; nothing waits between steps."""
    marks: list[Any] = []
    for i in range(WARM_UP + steps + 1):
        step(batches[i % len(batches)])
        if i >= WARM_UP:
            marks.append(_mark(device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return float(median(a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)))
    return float(median(b - a for a, b in pairwise(marks)))


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def compare(name: str, args: argparse.Namespace) -> list[Row]:
    """Rows of one model: ours with each optimizer, compiled and not, and the peer."""
    config, device = shape_of(name, tiny=args.tiny), args.torch_device
    torch._dynamo.reset()  # programs of another model count against what one function may have
    batches = random_batches(config, args.rows, args.tokens, 3)
    found: dict[str, float] = {}

    def measure(way: str, step: Step) -> None:
        begun = time.perf_counter()
        found[way] = args.rows * args.tokens / step_seconds(step, batches, device, args.steps)
        peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
        taken = time.perf_counter() - begun
        print(f"# {name} {way}: {found[way]:,.0f} tok/s, {peak:.1f} GB, {taken:.0f} s", flush=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    model = built(config, device, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        if args.peers:
            save_model(model, Path(folder), token_ids={})
        for way in args.ways:
            optimizer, _, compiled = way.partition("_")
            model.compiled = CompiledBlocks(args.backend) if compiled else None
            measure(way, ours(model, optim(optimizer, config)))
            release(device)
        del model
        release(device)
        for way in args.peers:
            step = theirs(
                *(Path(folder), device, args.dtype),
                is_moe=config.n_routed_experts > 0,
                compiled=way == "compiled",
            )
            measure(f"transformers_{way}", step)
            del step
            release(device)
    flops = sequence_flops(config, args.tokens, backward=True) / args.tokens
    return rows_of(name, found, flops / measure_ceiling(device, args.dtype).flops_per_s)


def rows_of(name: str, tokens_per_s: dict[str, float], least_s: float) -> list[Row]:
    """least_s: seconds of a token at the ceiling of matrix products. The best way of an optimizer is its row."""
    peers = {way: v for way, v in tokens_per_s.items() if way.startswith("transformers")}
    peer = max(peers, key=peers.__getitem__) if peers else None
    rows = []
    for optimizer in ("adamw", "muonclip"):
        ways = {w: v for w, v in tokens_per_s.items() if w.partition("_")[0] == optimizer}
        if ways:
            best = max(ways.values())
            beside = peers[peer] if peer else None
            rows.append(
                Row(f"train_{name}_{optimizer}", best, "tok/s", peer, beside, best * least_s)
            )
    rows += [
        Row(f"train_{name}_{way}", v, "tok/s", roofline_frac=v * least_s)
        for way, v in tokens_per_s.items()
        if way not in ("adamw", "muonclip")
    ]
    rows += [
        Row(f"train_{name}_{way}_eager", v, "tok/s", roofline_frac=v * least_s)
        for way, v in tokens_per_s.items()
        if way in ("adamw", "muonclip")
    ]
    return rows


def profile(name: str, args: argparse.Namespace) -> None:
    """What the device does in a step of the first way asked for."""
    config, device = shape_of(name, tiny=args.tiny), args.torch_device
    model = built(config, device, args.dtype)
    optimizer, _, compiled = args.ways[0].partition("_")
    model.compiled = CompiledBlocks(args.backend) if compiled else None
    step = ours(model, optim(optimizer, config))
    batches = random_batches(config, args.rows, args.tokens, 3)
    for i in range(WARM_UP):
        step(batches[i % len(batches)])
    print(f"# {name} {args.ways[0]}")
    print(report(lambda i: step(batches[i % len(batches)]), device, steps=3))


def main() -> None:
    parser = argparse.ArgumentParser(description="Training on a GPU beside transformers.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["moe544m"])
    parser.add_argument(
        "--ways", nargs="+", default=["adamw", "adamw_compiled", "muonclip", "muonclip_compiled"]
    )
    parser.add_argument("--peers", nargs="*", choices=("eager", "compiled"), default=["compiled"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2048, help="of a row")
    parser.add_argument("--backend", default="inductor", help="torch.compile's")
    parser.add_argument("--profile", action="store_true", help="of the first of --ways, no timing")
    parser.add_argument("--parity", action="store_true", help="losses with and without kernels")
    parser.add_argument("--attention", action="store_true", help="milliseconds of each backend")
    parser.add_argument("--kernels", nargs="+", help="of --parity: these, not all")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--out", type=Path, help="where the rows are written")
    args = parser.parse_args()
    args.torch_device = torch.device(args.device)
    args.dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    if args.tiny:
        args.steps, args.rows, args.tokens, args.backend = 2, 2, 16, "eager"
        args.peers = ["eager"] if args.peers else []
    if args.profile:
        for name in args.models:
            profile(name, args)
        return
    if args.attention:
        from attention_speed import attention_rows

        rows = attention_rows(args.torch_device, args.rows, args.tokens)
    elif args.parity:
        from parity import parity_rows

        steps = 3 if args.tiny else 200
        rows = parity_rows(args.torch_device, args.kernels, args.backend, steps)
    else:
        rows = [row for name in args.models for row in compare(name, args)]
    record(args.out or Path(f"train-{args.device}.json"), "python bench/train_gpu.py", rows)


if __name__ == "__main__":
    main()
