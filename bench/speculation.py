"""Speculation on the demo's model: how many tokens a step gives, and whether that pays, on this machine.

Train a model with a block of multi-token prediction first, then measure:

    nalar pretrain zero-cpu --run runs/mtp --model.num-nextn-predict-layers 1 \
      --pretrain.mtp-loss-weight 0.3 --pretrain.max-slices 1
    python bench/speculation.py runs/mtp/model --out bench/results/speculation-two-cores.json

Every way answers the same prompts in turn, several times; a round takes each once, beside the way without
guesses, and the figure is the median over rounds of the ratio of the two speeds. A ratio below 1 is a loss:
there speculation should be off. Seconds are those of the process on one thread, not of the clock, which on a
machine with other users would measure them.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nalar.config import UserError
from nalar.data.dialogue import encode_prompt
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig, SpeculationConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, Request, SamplingParams
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model
from nalar.tasks.countdown import Countdown
from record import Row, record

WAYS: dict[str, SpeculationConfig | None] = {
    "off": None,
    "ngram, 3 tokens": SpeculationConfig(method="ngram", num_speculative_tokens=3),
    "mtp, 1 token": SpeculationConfig(method="mtp", num_speculative_tokens=1),
    "mtp, 2 tokens": SpeculationConfig(method="mtp", num_speculative_tokens=2),
}
SHAPES: dict[str, dict[str, Any]] = {
    "temperature 1": {},
    "temperature 0.6, top-p 0.95": {"temperature": 0.6, "top_p": 0.95},
}


@dataclass(frozen=True)
class Run:
    """One way, once over all prompts."""

    tokens: int
    seconds: float
    """Of the processor."""
    accepted_length: float
    """Mean tokens of a step that guessed something."""
    accepted_frac: float
    """Guesses that were right."""
    completions: tuple[Completion, ...]


def prompts(tokenizer: Tokenizer, count: int) -> list[tuple[int, ...]]:
    """Problems that training did not see."""
    problems = Countdown().problems("valid", count, seed=0)
    return [
        tuple(encode_prompt(tokenizer, [{"role": "user", "content": problem.prompt}]))
        for problem in problems
    ]


def measure(
    model: Transformer,
    speculation: SpeculationConfig | None,
    requests: Sequence[Request],
    batch: int,
) -> Run:
    longest = model.config.max_position_embeddings
    limits = EngineConfig(max_model_len=longest, max_num_seqs=batch, speculation=speculation)
    engine = Engine(model, limits)
    start = time.process_time()
    completions = tuple(c for group in engine.generate(requests) for c in group)
    seconds = time.process_time() - start
    seen = engine.speculated
    tokens = sum(len(c.token_ids) for c in completions)
    accepted_frac = seen.accepted / seen.drafted if seen.drafted else 0.0
    return Run(tokens, seconds, seen.accepted_length, accepted_frac, completions)


def rows_of(where: str, rounds: Sequence[dict[str, Run]]) -> list[Row]:
    """Of one batch size and shape: speeds, their ratio to no guesses, and how many guesses were right."""
    rows = []
    for way in rounds[0]:
        runs, off = [r[way] for r in rounds], [r["off"] for r in rounds]
        speeds, plain = ([r.tokens / r.seconds for r in x] for x in (runs, off))
        name = f"{where}, {way}"
        if way == "off":
            rows.append(Row(f"{name}: speed", median(plain), "tok/s"))
            continue
        ratio = median(a / b for a, b in zip(speeds, plain, strict=True))
        pairs = zip(runs[0].completions, off[0].completions, strict=True)
        same = sum(a.token_ids == b.token_ids for a, b in pairs)
        rows += [
            Row(f"{name}: speed", median(speeds), "tok/s", "off", median(plain)),
            Row(f"{name}: speed against off, median of rounds", ratio, "ratio", "off", 1.0),
            Row(f"{name}: accepted length", runs[0].accepted_length, "tokens a step", "off", 1.0),
            Row(f"{name}: guesses accepted", runs[0].accepted_frac, "share"),
            Row(f"{name}: texts as without", same / len(off[0].completions), "share"),
        ]
    return rows


def compare(
    model: Transformer, tokenizer: Tokenizer, args: argparse.Namespace, batch: int, shape: str
) -> list[Row]:
    params = SamplingParams(
        max_tokens=args.max_tokens, stop_token_ids=(tokenizer.end_id,), **SHAPES[shape]
    )
    count = max(batch, args.prompts)
    requests = [
        Request(ids, params.model_copy(update={"seed": i}))
        for i, ids in enumerate(prompts(tokenizer, count))
    ]
    rounds: list[dict[str, Run]] = []
    for i in range(args.rounds):
        order = list(WAYS) if i % 2 == 0 else list(reversed(WAYS))
        seen = {way: measure(model, WAYS[way], requests, batch) for way in order}
        rounds.append({way: seen[way] for way in WAYS})
    return rows_of(f"batch {batch}, {shape}", rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a folder with a trained block of it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompts", type=int, default=8, help="at least; a batch has its own size")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.model).eval().requires_grad_(False)
    if not model.config.num_nextn_predict_layers:
        raise UserError(
            at=str(args.model),
            got="a model without a block of multi-token prediction",
            want="one that was trained with it",
            hint="the command at the top of this file",
        )
    tokenizer = Tokenizer.load(args.model)
    rows = [
        row
        for batch in args.batches
        for shape in SHAPES
        for row in compare(model, tokenizer, args, batch, shape)
    ]
    threads = torch.get_num_threads()
    command = (
        f"OMP_NUM_THREADS={threads} python bench/speculation.py runs/mtp/model --out {args.out}"
    )
    record(args.out, command, rows)


if __name__ == "__main__":
    main()
