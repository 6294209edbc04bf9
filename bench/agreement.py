"""How far the engine's log-probabilities are from the training forward's, on a GPU in bfloat16, and what
deterministic mode gives.

    PYTHONPATH=src python bench/agreement.py --out bench/results/agreement-nvidia-h200.json

64 prompts of 128 random tokens, 128 tokens drawn behind each at temperature 1, by the 544M mixture of experts with
random weights. Each drawn token's logprob is set beside that of one forward pass over the whole text, through the
kernels of training. A choice of experts that flips by rounding is in these figures like any other difference.
Deterministic mode is asked for the same texts with 1, 7 and 64 requests at once: tokens and logprobs to the bit.
`--tiny --device cpu` walks the same path in float32.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine import built, prompts
from memory import MOE, TINY
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Completion, Request, SamplingParams
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from record import Row, record

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
BATCHES = (1, 7, 64)


def sampled(
    model: Transformer, requests: Sequence[Request], *, deterministic: bool
) -> list[Completion]:
    longest = max(len(r.prompt_ids) + r.params.max_tokens for r in requests)
    config = EngineConfig(
        max_num_seqs=len(requests), max_model_len=longest, deterministic=deterministic
    )
    return [completion for [completion] in Engine(model, config).generate(requests)]


@torch.no_grad()
def differences(
    model: Transformer, requests: Sequence[Request], completions: Sequence[Completion]
) -> Tensor:
    """Engine less training forward, float64, of every token drawn."""
    device = model.head_weight.device
    found = []
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([*request.prompt_ids, *completion.token_ids], device=device)
        logprobs = model.logits(model(ids[None, :-1]).states[0]).log_softmax(-1)
        own = logprobs.gather(-1, ids[1:, None])[len(request.prompt_ids) - 1 :, 0]
        found.append(torch.tensor(completion.logprobs, dtype=torch.float64) - own.double().cpu())
    return torch.cat(found)


def rows_of(name: str, difference: Tensor) -> list[Row]:
    apart = difference.abs()
    rows = [
        Row(f"{name}: difference, quantile {q}", float(apart.quantile(q)), "nats")
        for q in QUANTILES
    ]
    rows.append(Row(f"{name}: difference, mean", float(difference.mean()), "nats"))
    divergence = torch.expm1(-difference) + difference  # k3 of Schulman's note on KL estimates
    rows.append(Row(f"{name}: KL(engine, trainer), k3", float(divergence.mean()), "nats a token"))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Engine beside the training forward.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    config = ModelConfig(**(MOE | (TINY if args.tiny else {})))
    model = built(config, device, dtype)
    length, batches = (6, (1, 3)) if args.tiny else (128, BATCHES)
    requests = [
        Request(ids, SamplingParams(max_tokens=length, seed=i))
        for i, ids in enumerate(prompts(max(batches), length, config.vocab_size))
    ]
    rows: list[Row] = []
    for name, deterministic in (("engine", False), ("deterministic", True)):
        completions = sampled(model, requests, deterministic=deterministic)
        rows += rows_of(name, differences(model, requests, completions))
    for batch in batches[:-1]:
        alone = sampled(model, requests[:batch], deterministic=True)
        same = alone == completions[:batch]
        rows.append(
            Row(f"deterministic: batch {batch} as batch {batches[-1]}", float(same), "bool")
        )
    record(args.out, "python bench/agreement.py", rows)


if __name__ == "__main__":
    main()
