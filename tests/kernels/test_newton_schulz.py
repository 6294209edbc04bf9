import pytest
import torch

from nalar.kernels.newton_schulz import orthogonalize


def random_batch(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 8, 64), (2, 48, 64), (2, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_land_near_one(shape, dtype):
    x_BNM = random_batch(shape)
    # A square Gaussian matrix has singular values too near zero for five steps.
    x_BNM = x_BNM + 2 * torch.eye(shape[1], shape[2]) * shape[2] ** 0.5
    values = torch.linalg.svdvals(orthogonalize(x_BNM, 5, dtype))
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_directions_stay_and_only_lengths_change():
    x_BNM = random_batch((2, 6, 20)).double()
    u, _, vh = torch.linalg.svd(x_BNM, full_matrices=False)
    rotated = u.mT @ orthogonalize(x_BNM.float(), 5).double() @ vh.mT
    off_diagonal = rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-4


def test_a_batch_equals_its_matrices_one_by_one():
    x_BNM = random_batch((7, 12, 16)) * torch.logspace(-6, 6, 7)[:, None, None]
    singly = torch.cat([orthogonalize(x_1NM, 5) for x_1NM in x_BNM.split(1)])
    torch.testing.assert_close(orthogonalize(x_BNM, 5), singly, rtol=1e-5, atol=1e-6)


def test_a_zero_matrix_stays_zero():
    x_BNM = random_batch((2, 4, 6))
    x_BNM[0] = 0
    result = orthogonalize(x_BNM, 5)
    assert torch.equal(result[0], torch.zeros(4, 6))
    assert result[1].abs().max() > 0.1


def test_the_input_is_left_alone():
    x_BNM = random_batch((2, 4, 6))
    before = x_BNM.clone()
    orthogonalize(x_BNM, 1)
    assert torch.equal(x_BNM, before)
