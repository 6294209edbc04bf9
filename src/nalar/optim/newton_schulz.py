"""Newton-Schulz: push the singular values of matrices towards 1 by matrix products alone."""

import torch
from torch import Tensor

# B matrices in the batch · N rows · M columns, N <= M

# Keller Jordan's quintic, chosen steep at zero: singular values land in about [0.7, 1.2], not on 1.
A, B, C = 3.4445, -4.7750, 2.0315
EPS = 1e-7


def orthogonalize(x_BNM: Tensor, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """U V^T of each matrix U S V^T, roughly: same shape, float32. A zero matrix stays zero.

    Rows must not outnumber columns: then the products are of the smaller side.
    dtype: of the products; by default float32 on a CPU and bfloat16 elsewhere. float16 is unstable.
    """
    rows, columns = x_BNM.shape[-2:]
    assert rows <= columns, f"got {rows} rows for {columns} columns: pass the transpose"
    if dtype is None:
        dtype = torch.float32 if x_BNM.device.type == "cpu" else torch.bfloat16
    norm_B11 = torch.linalg.vector_norm(x_BNM, dim=(-2, -1), keepdim=True)
    x_BNM = (x_BNM / (norm_B11 + EPS)).to(dtype)
    # Buffers are reused: on a CPU, page faults of fresh ones take a third of the time.
    next_BNM = torch.empty_like(x_BNM)
    gram_BNN = x_BNM.new_empty(x_BNM.shape[0], rows, rows)
    poly_BNN = torch.empty_like(gram_BNN)
    for _ in range(steps):
        torch.bmm(x_BNM, x_BNM.mT, out=gram_BNN)
        torch.baddbmm(gram_BNN, gram_BNN, gram_BNN, beta=B, alpha=C, out=poly_BNN)
        torch.baddbmm(x_BNM, poly_BNN, x_BNM, beta=A, out=next_BNM)
        x_BNM, next_BNM = next_BNM, x_BNM
    return x_BNM.float()


def orthogonalize_in_place(x_BNM: Tensor, steps: int) -> Tensor:
    """As `orthogonalize`, in the dtype of x and over it: what comes back is x, or lies elsewhere with its strides.

    For a GPU, whose baddbmm copies what it adds before it multiplies: the term A x is in the polynomial instead.
    """
    norm_B11 = torch.linalg.vector_norm(x_BNM, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x_BNM.div_(norm_B11 + EPS)
    next_BNM = torch.empty_like(x_BNM)
    gram_BNN = x_BNM.new_empty(*x_BNM.shape[:2], x_BNM.shape[1])
    poly_BNN = torch.empty_like(gram_BNN)
    for _ in range(steps):
        torch.bmm(x_BNM, x_BNM.mT, out=gram_BNN)
        torch.baddbmm(gram_BNN, gram_BNN, gram_BNN, beta=B, alpha=C, out=poly_BNN)
        poly_BNN.diagonal(dim1=-2, dim2=-1).add_(A)
        torch.bmm(poly_BNN, x_BNM, out=next_BNM)
        x_BNM, next_BNM = next_BNM, x_BNM
    return x_BNM
