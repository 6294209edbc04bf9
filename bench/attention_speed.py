"""Attention of training by each of its backends and widths: milliseconds of a layer, forward and backward."""

from collections.abc import Iterator
from itertools import pairwise

import torch

from nalar.kernels.fused_attention import CUDNN, CUDNN_OF_THREE_AXES, FLASH, Backend, widened
from record import Row

ROUNDS = 10
KINDS = {"moe544m": (16, 16, 96, 64), "dense234m": (16, 8, 64, 64), "qwen3_0.6b": (16, 8, 128, 128)}
WIDER = ((96, 96), (128, 64), (128, 128))


def ways(K: int, W: int) -> Iterator[Backend]:
    """Those that may take such heads, as they are and filled up."""
    yield CUDNN
    yield CUDNN_OF_THREE_AXES
    yield FLASH if K == W else widened(FLASH, K, K)
    for to_K, to_W in WIDER:
        if to_K >= K and to_W >= W and (to_K, to_W) != (K, W):
            yield widened(CUDNN, to_K, to_W)


def attention_rows(device: torch.device, rows: int, tokens: int) -> list[Row]:
    found = []
    for name, (H, G, K, W) in KINDS.items():
        shapes = ((H, K), (G, K), (G, W), (H, W))
        q, k, v, grad = (
            torch.randn(rows, tokens, *shape, device=device, dtype=torch.bfloat16).transpose(1, 2)
            for shape in shapes
        )
        flops = rows * H * tokens * (tokens + 1) * (K + W)
        for backend in ways(K, W):
            try:
                forward, both = times(backend, q, k, v, grad)
            except RuntimeError as error:
                print(f"# {name} {backend.name}: {str(error).splitlines()[0]}")
                continue
            label = f"attention {name} {backend.name}"
            found.append(Row(f"{label}: forward", forward, "ms"))
            found.append(Row(f"{label}: both", both, "ms"))
            found.append(Row(f"{label}: both, useful", 3.5 * flops / both / 1e9, "TFLOP/s"))
    return found


@torch.no_grad()
def times(
    backend: Backend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor
) -> tuple[float, float]:
    """Milliseconds of the forward pass, and of both, behind one round that warms up."""
    scale = q.shape[-1] ** -0.5
    out, lse = backend.forward(q, k, v, scale)
    backend.backward(grad, q, k, v, out, lse, scale)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    marks[0].record()
    for _ in range(ROUNDS):
        backend.forward(q, k, v, scale)
    marks[1].record()
    for _ in range(ROUNDS):
        backend.backward(grad, q, k, v, out, lse, scale)
    marks[2].record()
    torch.cuda.synchronize()
    forward, backward = (a.elapsed_time(b) / ROUNDS for a, b in pairwise(marks))
    return forward, forward + backward
