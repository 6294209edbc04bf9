"""The engine beside transformers at its best, in one run: decoding, a mixed load, a second turn, start-up.

    PYTHONPATH=src python bench/engine.py --out bench/results/engine-two-cores.json            # the demo's model, CPU
    PYTHONPATH=src python bench/engine.py --device cuda --out bench/results/engine-nvidia-h200.json

Random weights, lengths forced, temperature 1, no prompt kept from one round to the next. On a CPU the demo's model
with 24 + 128 tokens; on a GPU, in bfloat16, the 544M mixture of experts with 128 + 128 tokens and the load of
nano-vllm's bench (256 requests of 100 to 1,024 tokens in and out, the shape of Qwen3-0.6B). transformers generates with
each of its ways to run experts, on a GPU with those that have won there, with a static cache (which compiles the decode
step) too; the best counts. Repeats of all sides take turns, after a round that does not count.

The roofline is the larger of bytes over measured bandwidth and operations over the measured ceiling of matrix products.
Of decoding: for each step the weights that it touches and the cache of all rows at their mean length; prompts are not
in it. Of the mixed load: the operations of all prompts, and for each step, all requests under way from the first, the
weights and what those that are not done yet have in the cache.

`--only` names sections (decode, nano, turn, start), which can be run one at a time.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import peers
from memory import MOE
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.machine import keep_freed_memory
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.plan.model import count_parameters, flops_per_token, sequence_flops
from nalar.plan.published import PUBLISHED
from nalar.recipes.zero import zero_cpu
from record import Row, record
from timing import Limit, Run, seconds, section, wait

WAYS_ON_A_GPU = {
    1: (("batched_mm", "static"), ("grouped_mm", "static")),
    64: (("grouped_mm", "static"),),
    256: (("grouped_mm", "static"), ("grouped_mm", None)),
}
"""Experts and cache: what has come near the best there. A static cache costs a compilation each."""
WAYS_ON_A_CPU = (("eager", None), ("grouped_mm", None), ("batched_mm", None))


def built(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Random weights, made where they are used."""
    model = Transformer(config).to(device, dtype).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.fill_(1.0)
        else:
            p.normal_(std=config.initializer_range, generator=generator)
    return model


def decode_s(limit: Limit, c: ModelConfig, itemsize: int, batch: int, context: float) -> float:
    """One step of `batch` rows with `context` tokens behind each on average, at best."""
    params = count_parameters(c)
    touched = float(params.total_params)
    if c.n_routed_experts:
        touched -= params.routed_params * (1 - c.num_experts_per_tok / c.n_routed_experts) ** batch
    cache = batch * context * c.num_hidden_layers * c.cache_dim
    moved = (touched + cache) * itemsize
    return limit.least_s(moved, batch * flops_per_token(c, context, backward=False))


def load_s(limit: Limit, c: ModelConfig, itemsize: int, requests: Sequence[Request]) -> float:
    """Many requests at best: all prompts, then steps of all that are not done."""
    prompts = sum(sequence_flops(c, len(r.prompt_ids), backward=False) for r in requests)
    total = prompts / limit.flops_per_s
    for step in range(1, max(r.params.max_tokens for r in requests)):
        lengths = [len(r.prompt_ids) + step for r in requests if r.params.max_tokens > step]
        total += decode_s(limit, c, itemsize, len(lengths), sum(lengths) / len(lengths))
    return total


def prompts(count: int, length: int, vocab_size: int) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [tuple(rng.randrange(3, vocab_size) for _ in range(length)) for _ in range(count)]


def ours(engine: Engine, ids: list[tuple[int, ...]], tokens: int) -> Run:
    requests = [Request(p, SamplingParams(max_tokens=tokens, seed=i)) for i, p in enumerate(ids)]
    return lambda: engine.generate(requests)


class Bench:
    """The models of a machine, and what each section measures of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.repeats = torch.device(args.device), args.repeats
        self.padded: bool = args.padded
        self.is_gpu = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.is_gpu else torch.float32
        self.batches: tuple[int, ...] = (1, 64, 256) if self.is_gpu else (1, 64)
        self.prompt, self.tokens = (128 if self.is_gpu else 24), 128
        self.requests, self.longest = (256, 1024) if self.is_gpu else (64, 128)
        if args.tiny:
            self.batches, self.prompt, self.tokens, self.requests, self.longest = (2,), 4, 3, 3, 10
        moe = ModelConfig(**MOE, max_position_embeddings=8192) if self.is_gpu else zero_cpu().model
        self.config = moe.model_copy(update={"max_position_embeddings": 8192})
        self.name = "moe544m" if self.is_gpu else "demo"
        self._model: Transformer | None = None
        self._limit: Limit | None = None

    @property
    def model(self) -> Transformer:
        if self._model is None:
            self._model = built(self.config, self.device, self.dtype)
        return self._model

    @property
    def limit(self) -> Limit:
        if self._limit is None:
            self._limit = Limit(self.device, self.dtype)
        return self._limit

    def decode(self) -> list[Row]:
        """`decode_b1` and so on: forced lengths, beside transformers."""
        ways = {
            batch: WAYS_ON_A_GPU.get(batch, ()) if self.is_gpu else WAYS_ON_A_CPU
            for batch in self.batches
        }
        experts = sorted({name for each in ways.values() for name, _ in each})
        with tempfile.TemporaryDirectory() as folder, section("  transformers loads"):
            save_model(self.model, Path(folder), token_ids={})
            theirs = {e: peers.load(Path(folder), self.device, self.dtype, e) for e in experts}
        rows: list[Row] = []
        for batch in self.batches:
            with section(f"  batch {batch}"):
                rows += self._decode(batch, {way: theirs[way[0]] for way in ways[batch]})
        return rows

    def _decode(self, batch: int, ways: dict[tuple[str, str | None], Any]) -> list[Row]:
        engine = Engine(
            self.model,
            EngineConfig(
                max_num_seqs=batch,
                max_model_len=self.prompt + self.tokens,
                # All prompts in one step, as theirs.
                max_num_batched_tokens=max(8192, batch * self.prompt),
                enable_prefix_caching=False,
            ),
        )
        torch._dynamo.reset()  # a second batch size would be compiled for any size
        ids = prompts(batch, self.prompt, self.config.vocab_size)
        runs = {"ours": ours(engine, ids, self.tokens)}
        for (experts, cache), model in ways.items():
            run = peers.generating(model, ids, self.tokens, cache)
            runs[f"transformers_{experts}_{cache or 'dynamic'}"] = run
        taken = seconds(runs, self.device, self.repeats)
        speed = {way: batch * self.tokens / s for way, s in taken.items()}
        context = self.prompt + self.tokens / 2
        step = decode_s(self.limit, self.config, self.dtype.itemsize, batch, context)
        least = self.tokens * step
        own = f"{self.name}_decode_b{batch}"
        best = max((way for way in speed if way != "ours"), key=speed.__getitem__, default=None)
        theirs = None if best is None else speed[best]
        rows = [Row(own, speed["ours"], "tok/s", best, theirs, least / taken["ours"])]
        if theirs is not None:
            rows.append(Row(f"{own}_ratio", speed["ours"] / theirs, "x", best, 1.0))
        for way, value in speed.items():
            if way != "ours":
                rows.append(Row(f"{own}_{way}", value, "tok/s", roofline_frac=least / taken[way]))
        return rows

    def nano(self) -> list[Row]:
        """Requests of many lengths at once, as nano-vllm's bench has them."""
        config, model, name = self.config, self.model, "demo_mixed_load"
        if self.is_gpu:
            qwen, name = PUBLISHED["qwen3-0.6b"].config, "nano_vllm_bench"
            config = qwen.model_copy(update={"rope_interleave": False})  # as its folders say
            model = built(config, self.device, self.dtype)
        rng = random.Random(0)
        shortest = self.longest // 10
        requests = [
            Request(
                tuple(rng.randrange(config.vocab_size) for _ in range(length)),
                SamplingParams(max_tokens=tokens, temperature=0.6, seed=i),
            )
            for i in range(self.requests)
            for length, tokens in [[rng.randint(shortest, self.longest) for _ in range(2)]]
        ]
        with section("  ours"):
            taken = self._nano_ours(model, requests)
        least = load_s(self.limit, config, self.dtype.itemsize, requests)
        tokens = sum(r.params.max_tokens for r in requests)
        way, their_s = self._nano_peer(model, requests)
        theirs = None if their_s is None else tokens / their_s
        return [Row(name, tokens / taken, "tok/s", way, theirs, least / taken)]

    def _nano_ours(self, model: Transformer, requests: Sequence[Request]) -> float:
        own = EngineConfig(
            max_num_seqs=256, max_model_len=self.longest * 2, enable_prefix_caching=False
        )
        engine = Engine(model, own)
        return seconds({"ours": lambda: engine.generate(requests)}, self.device, 1)["ours"]

    def _nano_peer(
        self, model: Transformer, requests: Sequence[Request]
    ) -> tuple[str | None, float | None]:
        """Continuous batching where it works, else padded rows."""
        has_experts = model.config.n_routed_experts > 0
        experts = ("grouped_mm" if self.is_gpu else "eager") if has_experts else None
        with tempfile.TemporaryDirectory() as folder:
            save_model(model, Path(folder), token_ids={})
            peer = peers.load(Path(folder), self.device, self.dtype, experts)
        if self.is_gpu:
            torch.cuda.empty_cache()  # of our cache, so that theirs finds it
        with section("  transformers"):
            if self.is_gpu and not self.padded:
                try:
                    return "transformers_continuous", peers.batched_seconds(peer, requests)
                except Exception as error:  # whatever it raises, there is another way
                    print(f"continuous batching: {error!r}", file=sys.stderr)
            cache = "static" if self.is_gpu else None
            return "transformers_padded", peers.padded_seconds(peer, requests, cache)

    def turn(self) -> list[Row]:
        """What the second turn of a long conversation costs beside the first: prompt alone, one token drawn."""
        engine = Engine(self.model, EngineConfig(max_num_seqs=4, max_model_len=8192))
        first: list[float] = []
        second: list[float] = []
        for i in range(self.repeats + 1):
            ids = prompts(i + 1, 4096, self.config.vocab_size)[i]
            turns = (ids, ids + prompts(1, 48, self.config.vocab_size)[0])
            for turn, taken in zip(turns, (first, second), strict=True):
                wait(self.device)
                started = time.perf_counter()
                engine.generate([Request(turn, SamplingParams(max_tokens=1))])
                wait(self.device)
                taken.append(time.perf_counter() - started)
        share = median(second[1:]) / median(first[1:])
        return [Row("second_turn_4k", share, "of the first turn's time")]

    def start(self) -> list[Row]:
        """From the call of `Engine(...)`: until it is there, and until 4 tokens are; each in a process of its own.

        cold: nothing of ours has been compiled on this machine; warm: a process before has.
        """
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            kept = {
                "TRITON_CACHE_DIR": f"{folder}/triton",
                "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            }
            command = [sys.executable, __file__, "--device", str(self.device), "--only", "once"]
            for kind in ("cold", "warm"):
                done = subprocess.run(
                    command, env=os.environ | kept, stdout=subprocess.PIPE, text=True, check=True
                )
                ready_s, first_s = json.loads(done.stdout.splitlines()[-1])
                rows.append(Row(f"{self.name}_start_{kind}", ready_s, "s"))
                rows.append(Row(f"{self.name}_first_tokens_{kind}", first_s, "s"))
        return rows

    def once(self) -> list[float]:
        model = self.model
        wait(self.device)
        started = time.perf_counter()
        engine = Engine(model, EngineConfig(max_num_seqs=256, max_model_len=512))
        wait(self.device)
        ready = time.perf_counter()
        engine.generate([Request((1, 2, 3), SamplingParams(max_tokens=4))])
        wait(self.device)
        return [ready - started, time.perf_counter() - started]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The engine beside transformers.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="start,decode,nano,turn", help="sections, with commas")
    parser.add_argument("--padded", action="store_true", help="no continuous batching for the peer")
    parser.add_argument("--tiny", action="store_true", help="walk through it without measuring")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the command line does; both sides gain
    bench = Bench(args)
    if args.only == "once":
        print(json.dumps(bench.once()))
        return
    sections: dict[str, Callable[[], list[Row]]] = {
        "start": bench.start,
        "decode": bench.decode,
        "nano": bench.nano,
        "turn": bench.turn,
    }
    wanted = args.only.split(",")
    unknown = set(wanted) - set(sections)
    if unknown or args.out is None:
        parser.error(f"--out FILE, and --only out of {', '.join(sections)}")
    rows: list[Row] = []
    for name in wanted:
        with section(name):
            rows += sections[name]()
    flags = (
        f"--device {args.device} " * bench.is_gpu
        + "--padded " * args.padded
        + f"--only {args.only} --out {args.out}"
    )
    record(args.out, f"python bench/engine.py {flags}", rows)


if __name__ == "__main__":
    main()
