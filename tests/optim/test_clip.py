import math

import pytest
import torch

from nalar.optim.clip import clip_global_norm_


def norms(gradients):
    return torch._foreach_norm(gradients)


def test_a_long_gradient_is_cut_to_the_norm_by_hand():
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert clip_global_norm_(gradients, norms(gradients), 1.0) == pytest.approx(5.0)
    assert torch.allclose(gradients[0], torch.tensor([0.6, 0.0]))
    assert torch.allclose(gradients[1], torch.tensor([[0.8]]))


@pytest.mark.parametrize("max_norm", [5.1, None])
def test_a_short_gradient_is_untouched(max_norm):
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert clip_global_norm_(gradients, norms(gradients), max_norm) == pytest.approx(5.0)
    assert gradients == [torch.tensor([3.0]), torch.tensor([4.0])]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_returned(bad):
    gradients = [torch.tensor([bad]), torch.tensor([4.0])]
    assert not math.isfinite(clip_global_norm_(gradients, norms(gradients), 1.0))
