"""The engine beside transformers at its best, in one run: decoding, a mixed load, a second turn, start-up.

    PYTHONPATH=src python bench/engine.py --out bench/results/engine-two-cores.json            # the demo's model, CPU
    PYTHONPATH=src python bench/engine.py --device cuda --out bench/results/engine-nvidia-h200.json

Random weights, lengths forced, temperature 1. On a CPU the demo's model with 24 + 128 tokens; on a GPU, in bfloat16,
the 544M mixture of experts with 128 + 128 tokens and the load of nano-vllm's bench (256 requests of 100 to 1,024
tokens in and out, the shape of Qwen3-0.6B). transformers generates with each of its ways to run experts, on a GPU with
a static cache (which compiles the decode step) too; the best counts. Repeats of all sides take turns. The roofline is
the larger of bytes over measured bandwidth and operations over the measured ceiling of matrix products.
"""

import argparse
import gc
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from memory import MOE
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.kernels.ceiling import measure_ceiling
from nalar.machine import keep_freed_memory
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.plan.model import count_parameters, flops_per_token
from nalar.plan.published import PUBLISHED
from nalar.recipes.zero import zero_cpu
from record import Row, record

Run = Callable[[], object]


def built(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    model = Transformer(config)
    model.initialize(0)
    return model.to(device, dtype).eval().requires_grad_(False)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(runs: dict[str, Run], device: torch.device, repeats: int) -> dict[str, float]:
    """Median of each, all in turn, after one round that does not count."""
    gc.collect()
    gc.freeze()  # else whoever makes objects pays for looking through those of all libraries
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            wait(device)
            started = time.perf_counter()
            run()
            wait(device)
            if i:
                taken[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in taken.items()}


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written."""
    size = 2**31 if device.type == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = seconds({"copy": lambda: target.copy_(source)}, device, 5)
    return 2 * size / taken["copy"]


class Limit:
    """What this machine could do at best."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.bytes_per_s = bandwidth(device)
        self.flops_per_s = measure_ceiling(device, dtype).flops_per_s

    def decode_s(self, c: ModelConfig, itemsize: int, batch: int, context: float) -> float:
        """One step of `batch` rows with `context` tokens behind each on average."""
        params = count_parameters(c)
        touched = float(params.total_params)
        if c.n_routed_experts:
            touched -= (
                params.routed_params * (1 - c.num_experts_per_tok / c.n_routed_experts) ** batch
            )
        cache = batch * context * c.num_hidden_layers * c.cache_dim
        moved = (touched + cache) * itemsize / self.bytes_per_s
        done: float = batch * flops_per_token(c, context, backward=False) / self.flops_per_s
        return max(moved, done)


def prompts(count: int, length: int, vocab_size: int) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [tuple(rng.randrange(3, vocab_size) for _ in range(length)) for _ in range(count)]


def ours(engine: Engine, ids: list[tuple[int, ...]], tokens: int) -> Run:
    requests = [Request(p, SamplingParams(max_tokens=tokens, seed=i)) for i, p in enumerate(ids)]
    return lambda: engine.generate(requests)


def theirs(folder: Path, device: torch.device, dtype: torch.dtype, *, is_moe: bool) -> list[Any]:
    """(name, generate(ids, tokens)) for each way that transformers has."""
    import transformers

    found = []
    for experts in ("eager", "grouped_mm", "batched_mm") if is_moe else ("eager",):
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", experts_implementation=experts
        )
        model = model.to(device).eval()
        caches = (None, "static") if device.type == "cuda" else (None,)
        found += [(f"{experts}_{cache or 'dynamic'}", _generate(model, cache)) for cache in caches]
    return found


def _generate(model: Any, cache: str | None) -> Callable[[list[tuple[int, ...]], int], Run]:
    def bound(ids: list[tuple[int, ...]], tokens: int) -> Run:
        batch = torch.tensor(ids, device=model.device)
        own = {"cache_implementation": cache} if cache else {}

        @torch.inference_mode()
        def run() -> object:
            return model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                pad_token_id=0,
                **own,
            )

        return run

    return bound


def decode_rows(
    args: argparse.Namespace, config: ModelConfig, name: str, limit: Limit
) -> list[Row]:
    """`decode_b1` and so on: forced lengths, beside transformers."""
    device, dtype = torch.device(args.device), args.dtype
    model = built(config, device, dtype)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder), token_ids={})
        peers = theirs(Path(folder), device, dtype, is_moe=config.n_routed_experts > 0)
    for batch in args.batches:
        engine = Engine(
            model, EngineConfig(max_num_seqs=batch, max_model_len=args.prompt + args.tokens)
        )
        ids = prompts(batch, args.prompt, config.vocab_size)
        runs = {"ours": ours(engine, ids, args.tokens)}
        runs |= {f"transformers_{way}": generate(ids, args.tokens) for way, generate in peers}
        taken = seconds(runs, device, args.repeats)
        best = min((way for way in taken if way != "ours"), key=taken.__getitem__)
        speed = {way: batch * args.tokens / s for way, s in taken.items()}
        context = args.prompt + args.tokens / 2
        least = args.tokens * limit.decode_s(config, dtype.itemsize, batch, context)
        own = f"{name}_decode_b{batch}"
        rows.append(Row(own, speed["ours"], "tok/s", best, speed[best], least / taken["ours"]))
        rows.append(Row(f"{own}_ratio", speed["ours"] / speed[best], "x", best, 1.0))
        for way, value in speed.items():
            if way != "ours":
                rows.append(Row(f"{own}_{way}", value, "tok/s", roofline_frac=least / taken[way]))
        del engine
    return rows


def mixed_rows(args: argparse.Namespace, config: ModelConfig, name: str) -> list[Row]:
    """Requests of many lengths at once, as nano-vllm's bench has them."""
    device = torch.device(args.device)
    engine = Engine(
        built(config, device, args.dtype),
        EngineConfig(max_num_seqs=256, max_model_len=args.longest * 2),
    )
    rng = random.Random(0)
    requests = [
        Request(
            tuple(
                rng.randrange(config.vocab_size)
                for _ in range(rng.randint(args.longest // 10, args.longest))
            ),
            SamplingParams(
                max_tokens=rng.randint(args.longest // 10, args.longest), temperature=0.6, seed=i
            ),
        )
        for i in range(args.requests)
    ]
    taken = seconds({"ours": lambda: engine.generate(requests)}, device, 1)["ours"]
    return [Row(name, sum(r.params.max_tokens for r in requests) / taken, "tok/s")]


def turn_rows(args: argparse.Namespace, config: ModelConfig) -> list[Row]:
    """What the second turn of a long conversation costs beside the first: prompt alone, one token drawn."""
    device = torch.device(args.device)
    config = config.model_copy(update={"max_position_embeddings": 8192})
    engine = Engine(
        built(config, device, args.dtype), EngineConfig(max_num_seqs=4, max_model_len=8192)
    )
    first: list[float] = []
    second: list[float] = []
    for i in range(args.repeats + 1):
        ids = prompts(i + 1, 4096, config.vocab_size)[i]
        turns = (ids, ids + prompts(1, 48, config.vocab_size)[0])
        for turn, taken in zip(turns, (first, second), strict=True):
            wait(device)
            started = time.perf_counter()
            engine.generate([Request(turn, SamplingParams(max_tokens=1))])
            wait(device)
            taken.append(time.perf_counter() - started)
    return [
        Row("second_turn_4k", median(second[1:]) / median(first[1:]), "of the first turn's time")
    ]


def start_rows(args: argparse.Namespace, config: ModelConfig, name: str) -> list[Row]:
    """From the call of `Engine(...)` to its first token."""
    device = torch.device(args.device)
    model = built(config, device, args.dtype)
    rows = []
    for kind in ("cold", "warm"):
        wait(device)
        started = time.perf_counter()
        engine = Engine(model, EngineConfig(max_num_seqs=256, max_model_len=512))
        engine.generate([Request((1, 2, 3), SamplingParams(max_tokens=2))])
        wait(device)
        rows.append(Row(f"{name}_start_{kind}", time.perf_counter() - started, "s"))
        del engine
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="The engine beside transformers.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="walk through it without measuring")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the command line does; both sides gain
    is_gpu = args.device != "cpu"
    args.dtype = torch.bfloat16 if is_gpu else torch.float32
    args.batches, args.prompt, args.tokens = (
        ((1, 64, 256), 128, 128) if is_gpu else ((1, 64), 24, 128)
    )
    args.requests, args.longest = (256, 1024) if is_gpu else (64, 128)
    config = ModelConfig(**MOE, max_position_embeddings=4096) if is_gpu else zero_cpu().model
    if args.tiny:
        args.batches, args.prompt, args.tokens, args.requests, args.longest = (2,), 4, 3, 3, 10
    limit = Limit(torch.device(args.device), args.dtype)
    name = "moe544m" if is_gpu else "demo"
    rows = start_rows(args, config, name)
    rows += decode_rows(args, config, name, limit)
    if is_gpu:
        rows += mixed_rows(args, PUBLISHED["qwen3-0.6b"].config, "nano_vllm_bench")
    else:
        rows += mixed_rows(args, config, "demo_mixed_load")
    rows += turn_rows(args, config)
    record(args.out, "python bench/engine.py", rows)


if __name__ == "__main__":
    main()
