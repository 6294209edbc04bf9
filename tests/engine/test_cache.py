import torch

from nalar.engine.cache import STEP_TOKENS, TokenCache


def test_growing_keeps_what_was_stored_and_the_view_stays_short():
    cache = TokenCache(num_layers=2, num_slots=3, entry_dim=4, max_len=500)
    prompt_LTC = torch.randn(2, 5, 4)
    cache.store_prompt(1, 2, prompt_LTC)
    assert cache.view(3, 5).shape == (2, 3, STEP_TOKENS, 4)
    cache.view(3, 6)[:, :, 5] = 7.0
    grown_LBTC = cache.view(3, 400)
    assert grown_LBTC.shape[2] < 400 + STEP_TOKENS
    for row in (1, 2):
        torch.testing.assert_close(grown_LBTC[:, row, :5], prompt_LTC)
    assert (grown_LBTC[:, :, 5] == 7.0).all()
    assert (grown_LBTC[:, :, 6:] == 0.0).all()


def test_the_view_never_exceeds_the_longest_sequence_allowed():
    cache = TokenCache(num_layers=1, num_slots=1, entry_dim=1, max_len=40)
    cache.store_prompt(0, 1, torch.ones(1, 39, 1))
    memory = cache.view(1, 40)
    assert memory.shape[2] == 40
    assert cache.view(1, 45).data_ptr() == memory.data_ptr()


def test_moved_rows_take_their_past_along():
    cache = TokenCache(num_layers=2, num_slots=4, entry_dim=3, max_len=64)
    for row in range(4):
        cache.store_prompt(row, 1, torch.full((2, 6, 3), float(row)))
    cache.move(torch.tensor([3, 2]), torch.tensor([0, 1]), length=6)
    assert cache.view(2, 6)[0, :, 5, 0].tolist() == [3.0, 2.0]
