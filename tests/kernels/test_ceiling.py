import time

import torch

from nalar.kernels.ceiling import CPU_SIDE, measure_ceiling

CPU = torch.device("cpu")


def test_a_product_of_our_own_is_about_as_fast_as_the_ceiling():
    ceiling = measure_ceiling(CPU, torch.float32)
    assert (ceiling.side, ceiling.dtype) == (CPU_SIDE, torch.float32)
    a = torch.rand(CPU_SIDE, CPU_SIDE)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begun)
    assert 0.2 < 2 * CPU_SIDE**3 / min(seconds) / ceiling.flops_per_s < 5


def test_measuring_draws_no_random_number_of_the_process():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure_ceiling(CPU, torch.float32)
    assert torch.equal(torch.rand(3), expected)
