"""Peak memory of a training step on a GPU, predicted and measured, with what holds it.

    PYTHONPATH=src python bench/memory.py --out bench/results/memory-nvidia-h200.json

Predicted by `nalar.plan.cost.training_memory`, the peak of the allocator beside it as the peer. `--tiny --device cpu`
walks the same path without measuring.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nalar.kernels.documents import Documents
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig
from nalar.optim.muonclip import MuonClip
from nalar.plan.cost import Optimizer, training_memory
from nalar.train.step import Batch, pretrain_step
from record import Row, record

MOE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "n_routed_experts": 32,
    "num_experts_per_tok": 4,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
}
DENSE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "kv_lora_rank": None,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
}
ROW_TOKENS = 2048
CASES: dict[str, tuple[dict[str, Any], Optimizer, int, bool]] = {
    "moe544m_muonclip": (MOE, "muonclip", 8, False),
    "moe544m_adamw": (MOE, "adamw", 8, False),
    "moe544m_muonclip_recompute": (MOE, "muonclip", 16, True),
    "dense234m_muonclip": (DENSE, "muonclip", 8, False),
    "dense234m_muonclip_one_row": (DENSE, "muonclip", 1, False),
}


class Allocated:
    """What the allocator holds, in bytes; 0 where there is none."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"

    def now(self) -> int:
        return torch.cuda.memory_allocated() if self.is_cuda else 0

    def peak_of(self, work: Callable[[], object]) -> int:
        if not self.is_cuda:
            work()
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def measure(name: str, device: torch.device, tiny: bool) -> list[Row]:
    shape, optimizer_name, rows, recompute = CASES[name]
    config = ModelConfig(**(shape | (TINY if tiny else {})))
    row_tokens = 32 if tiny else ROW_TOKENS
    held = Allocated(device)
    start = held.now()
    dtype = torch.bfloat16
    model = Transformer(config)
    model.initialize(0)
    model = model.to(device, dtype)
    model.recompute = recompute
    weights = held.now() - start
    optimizer = MuonClip(model.named_parameters(), OptimConfig(name=optimizer_name))
    state = held.now() - start - weights
    ids = torch.randint(0, config.vocab_size, (rows * row_tokens + 1,), device=device)
    documents = Documents.of([row_tokens] * rows, device=device)
    batch = Batch(ids[:-1], ids[1:], documents)

    def step() -> None:
        pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.001)

    for _ in range(2):
        step()
    peak = held.peak_of(step) - start
    optimizer.zero_grad()
    hidden = model(batch.ids_N, batch.documents)
    model.logits(hidden.states[-1:]).sum().backward()
    del hidden
    in_update = held.peak_of(lambda: optimizer.step(1.0)) - start
    estimate = training_memory(
        config,
        batch_tokens=rows * row_tokens,
        row_tokens=row_tokens,
        optimizer=optimizer_name,
        dtype="bfloat16",
        recompute=recompute,
        accumulates=False,
        on_gpu=True,
    )
    predicted = estimate.total_bytes
    state_bytes = estimate.parameters_bytes + estimate.gradients_bytes + estimate.optimizer_bytes
    return [
        Row(f"{name}_peak", predicted / 1e9, "GB", "allocator", peak / 1e9),
        Row(f"{name}_weights", estimate.parameters_bytes / 1e9, "GB", "allocator", weights / 1e9),
        Row(f"{name}_optimizer", estimate.optimizer_bytes / 1e9, "GB", "allocator", state / 1e9),
        Row(
            f"{name}_peak_in_update",
            (state_bytes + estimate.update_bytes) / 1e9,
            "GB",
            "allocator",
            in_update / 1e9,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted and measured peak memory of training.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[Row] = []
    for name in CASES:
        rows += measure(name, torch.device(args.device), args.tiny)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    record(args.out, f"python bench/memory.py --out {args.out}", rows)


if __name__ == "__main__":
    main()
