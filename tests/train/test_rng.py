import json
import random

import numpy as np
import pytest
import torch

from nalar.config import UserError
from nalar.train.rng import random_state, restore_random_state, seed_all


@pytest.fixture(autouse=True)
def generators_are_put_back():
    before = random_state()
    yield
    restore_random_state(before)


def draws():
    """Of every generator; the Gaussians leave half a pair behind."""
    return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.random()] + (
        torch.rand(3).tolist()
    )


def test_every_generator_goes_on_where_it_was():
    seed_all(1, "rl")
    draws()
    state = json.loads(json.dumps(random_state()))
    expected = [draws() for _ in range(3)]
    seed_all(2, "rl")
    restore_random_state(state)
    assert [draws() for _ in range(3)] == expected


def test_each_seed_and_purpose_has_numbers_of_its_own():
    found = []
    for seed, purpose in [(1, "rl"), (1, "pretrain"), (2, "rl"), (1, "rl")]:
        seed_all(seed, purpose)
        found.append(draws())
    assert found[0] == found[3]
    assert all(a != b for a, b in zip(found[0], found[1], strict=True))
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize("change", [{"torch": "00"}, {"python": [3, [1], None]}, {"numpy": [1]}])
def test_a_state_that_does_not_fit_is_bad_input(change):
    with pytest.raises(UserError, match="random state"):
        restore_random_state(random_state() | change)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_goes_on_where_it_was():
    seed_all(1)
    torch.rand(3, device="cuda")
    state = json.loads(json.dumps(random_state()))
    expected = torch.rand(3, device="cuda").tolist()
    restore_random_state(state)
    assert torch.rand(3, device="cuda").tolist() == expected
