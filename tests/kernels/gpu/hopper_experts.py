"""As `hopper`, the kernels of mixtures and dense layers: few rows, and many as in training."""

import torch
from hopper import Hopper, compile_only
from triton.runtime import driver, jit

from nalar.kernels.gpu import experts, permute, router

BF16 = torch.bfloat16


def zeros(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def few(T: int, D: int, E: int, K: int, F: int, groups: int) -> None:
    ids, weights = zeros(T, K, dtype=torch.int64), zeros(T, K, dtype=torch.float32)
    shared = (zeros(F, D), zeros(F, D), zeros(D, F))
    experts.few_row_experts(zeros(T, D), ids, weights, zeros(E, 2, F, D), zeros(E, D, F), shared)
    experts.few_row_dense(zeros(T, D), (zeros(8 * F, D), zeros(8 * F, D), zeros(D, 8 * F)))
    choice = router.Choice(K, groups, 1, is_sigmoid=True, is_normed=True, scale=1.0)
    router.route(zeros(T, D), zeros(E, D), zeros(E, dtype=torch.float32), choice)


def many(T: int, E: int, K: int, F: int) -> None:
    R = T * K
    weights, rows = zeros(T, K, dtype=torch.float32), zeros(R, dtype=torch.int32)
    permute.sort_routes(zeros(T, K, dtype=torch.int64), E)
    permute.swiglu_backward(zeros(R, 2 * F), zeros(R, F), weights, rows)
    permute.swiglu(zeros(R, 2 * F))
    permute.spread(zeros(T, F), rows, K)
    permute.sum_choices(zeros(R, F), rows, weights, K)
    permute.sum_choices(zeros(R, F), rows, None, K)
    router.best(zeros(T, E, dtype=torch.float32), K, 1, 1)


if __name__ == "__main__":
    driver.set_active(Hopper())
    jit.KernelInterface.__getitem__ = compile_only
    for T in (1, 64, 128, 256, 512):
        few(T, 1024, 32, 4, 384, groups=1)
    few(16, 1024, 64, 6, 256, groups=8)
    many(2048, 32, 4, 384)
    many(2048, 256, 8, 768)
