"""Models whose steps our own kernels compute, in Triton's interpreter, say what they say without."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from nalar.kernels import switch

pytest.importorskip("triton")
from triton.runtime.interpreter import GridExecutor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU: no interpreter")

KERNELS = ("paged_attention", "projections", "rms_norm", "rotary")
LENGTHS = [6, 2, 9]


class Launches(TorchDispatchMode):
    """What would be a kernel on a GPU: operations of torch but for views and allocations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in ("empty", "new_empty", "_unsafe_view", "detach"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


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


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["deepseek_v3", "qwen3", "deepseek_v3-other_order", "qwen2-yarn", "granitemoe"]
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


@torch.no_grad()
def test_drafts_by_kernels_are_the_plain_drafts(tiny_families, random_model, make_pages):
    """Entries begin behind the first position, and a row may be nobody's: it sees nothing, and is finite."""
    config = tiny_families["deepseek_v3-moonlight"].model_copy(
        update={"num_nextn_predict_layers": 1}
    )
    model = random_model(config)
    gen = torch.Generator().manual_seed(0)
    states = torch.randn(3, config.hidden_size, generator=gen)
    ids = torch.randint(config.vocab_size, (3,), generator=gen)
    plain, own = (make_pages(config, 3, 32) for _ in range(2))
    paging = replace(plain.rows([9, 30, 0]), first=1)
    expected = model.draft(states, ids, plain.cache[0], paging)
    with switch.forced(*KERNELS):
        got = model.draft(states, ids, own.cache[0], paging)
    assert_close(got[:2], expected[:2], rtol=1e-4, atol=2e-5)
    assert got.isfinite().all()


@torch.no_grad()
@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("family", "rows", "expected"),
    [
        (
            "deepseek_v3-moonlight",
            3,
            "_norm_row _project _latent_entry _attend_part _join_parts _project",
        ),
        ("qwen3", 5, "_norm_row mm mm mm _grouped_entry _attend_part _join_parts mm"),
        (
            "deepseek_v3-moonlight",
            5,
            "_norm_row mm mm _latent_entry bmm _attend_part _join_parts bmm mm",
        ),
        ("qwen3", 3, "_norm_row _project _grouped_entry _attend_part _join_parts _project"),
    ],
)
def test_the_attention_half_of_a_decoding_layer_is_these_launches(
    tiny_families, random_model, make_pages, monkeypatch, family, rows, expected
):
    config = tiny_families[family]
    block = random_model(config).model.layers[1]
    launches, pages = Launches(), make_pages(config, rows, 100)
    launch = GridExecutor.__call__

    def launched(kernel, *args, **kwargs):
        launches.names.append(kernel.fn.__name__)
        with _disable_current_modes():  # in the interpreter a kernel is many operations
            launch(kernel, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", launched)
    x_ND = torch.randn(rows, config.hidden_size)
    turn = torch.ones(rows, config.rotary_dim // 2, dtype=torch.complex64)
    paging = pages.rows([9, 90, 4, 17, 0][:rows])
    hidden = paging.hidden(pages.size, x_ND.dtype)
    with switch.forced(*KERNELS), launches:
        _, normed = block.input_layernorm.after(x_ND, x_ND, 1.0)
        block.self_attn.extend(normed, turn, pages.cache[1], paging, hidden)
    assert launches.names == expected.split()
