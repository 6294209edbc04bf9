"""Models whose steps our own kernels compute, in Triton's interpreter, say what they say without."""

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels import switch

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array")  # by the interpreter

KERNELS = ("paged_attention",)
LENGTHS = [11, 3, 18]


def steps(model, pages, ids):
    """Whole prompts, a step of every row, a step of two tokens of each, and a chunk behind the first."""
    states = [
        model.extend(
            torch.cat([ids[i, :n] for i, n in enumerate(LENGTHS)]),
            pages.cache,
            pages.prompts(LENGTHS),
        )
    ]
    for start, tokens in ((0, 1), (1, 2)):
        starts = [n + start for n in LENGTHS]
        own = torch.cat([ids[i, a : a + tokens] for i, a in enumerate(starts)])
        states.append(model.extend(own, pages.cache, pages.rows(starts, tokens)))
    chunk = pages.chunk(0, LENGTHS[0] + 3, LENGTHS[0] + 8)
    states.append(model.extend(ids[0, chunk.positions_N], pages.cache, chunk))
    return torch.cat(states)


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["deepseek_v3", "deepseek_v3-other_order", "qwen3", "qwen2-yarn", "granitemoe"]
)
def test_a_step_by_kernels_gives_what_the_plain_step_gives(
    tiny_families, random_model, make_pages, family
):
    config = tiny_families[family]
    model = random_model(config)
    ids = torch.randint(config.vocab_size, (3, 32), generator=torch.Generator().manual_seed(0))
    plain, own = (make_pages(config, 3, 32) for _ in range(2))
    expected = steps(model, plain, ids)
    with switch.forced(*KERNELS):
        got = steps(model, own, ids)
    assert_close(got, expected, rtol=1e-4, atol=2e-5)
    assert_close(own.cache, plain.cache, rtol=1e-4, atol=2e-5)
    assert not torch.equal(got, expected)  # it was the kernels
