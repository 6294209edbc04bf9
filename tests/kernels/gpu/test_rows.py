import pytest
import torch

from nalar.kernels import switch
from nalar.kernels.rows import keep, newest

pytest.importorskip("triton")

pytestmark = pytest.mark.few(3)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def rows():
    torch.manual_seed(0)
    ids_R, tables_RM = torch.randint(0, 1000, (9,)), torch.randint(1, 99, (9, 7))
    positions_R = torch.tensor([0, 1, 5, 6, 7, 23, 24, 40, 3])
    return tuple(x.to(DEVICE) for x in (ids_R, positions_R, tables_RM))


@pytest.mark.parametrize("width", [4, 7])
def test_the_newest_tokens_are_those_that_torch_finds(rows, width):
    rows_B = torch.tensor([8, 3, 5, 6, 0, 7, 8, 8], device=DEVICE)
    limits_B = torch.tensor([1, 9, 24, 24, 1, 41, 1, 4], device=DEVICE)
    given = (rows_B, limits_B, *rows)
    want = newest(*given, width=width, block_size=6)
    with switch.forced("rows"):
        found = newest(*given, width=width, block_size=6)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    # of nobody, and of a row at its limit: nobody's slot, and a position that is there
    assert found.slots_B[0] == found.slots_B[3] == 0 and found.positions_B[3] == 23


@pytest.mark.parametrize("count", [1, 130])
def test_what_was_drawn_goes_where_torch_puts_it(count):
    generator = torch.Generator().manual_seed(1)
    rows_B = torch.randperm(200, generator=generator)[:count].to(DEVICE)
    drawn = (torch.arange(count) + 7, torch.randn(count), torch.randn(count))
    drawn = tuple(x.to(DEVICE) for x in drawn)
    found = []
    for is_on in (False, True):
        ids_R, positions_R = torch.zeros(2, 200, dtype=torch.int64, device=DEVICE)
        kept = (torch.zeros(3, 140).long(), torch.full((3, 140), torch.nan), torch.zeros(3, 140))
        kept = tuple(x.to(DEVICE) for x in kept)
        at_1 = torch.tensor([1], device=DEVICE)
        with switch.forced("rows", on=is_on):
            keep(rows_B, rows_B * 2, *drawn, ids_R, positions_R, kept, at_1)
        found.append((ids_R, positions_R, *kept, at_1))
    for plain, kernel in zip(*found, strict=True):
        assert torch.equal(plain.nan_to_num(-1.0), kernel.nan_to_num(-1.0))
    assert found[1][-1] == 2
