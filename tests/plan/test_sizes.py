import pytest

from nalar.plan.model import flops_per_token
from nalar.plan.published import PUBLISHED
from nalar.plan.sizes import sizes_of


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parts_sum_to_the_whole(name):
    sizes = sizes_of(PUBLISHED[name].config, context_tokens=4096)
    parts = sizes.params.model_dump()
    assert sum(parts.values()) == sizes.total_params
    idle = sizes.params.routed - sizes.routed_active_params
    assert sizes.active_params == sizes.total_params - idle
    words = sizes.params.embedding + sizes.params.head
    assert sizes.active_params_without_embeddings == sizes.active_params - words


@pytest.mark.parametrize(
    ("name", "total", "active", "without"),
    [
        ("deepseek-r1", 671_026_419_200, 37_552_297_472, 35_698_939_392),
        ("kimi-k2-thinking", 1_026_408_232_448, 32_861_500_928, 30_512_690_688),
        ("moonlight-16b-a3b", 15_960_110_208, 2_914_776_192, 2_243_687_552),
    ],
)
def test_the_known_integers(name, total, active, without):
    sizes = sizes_of(PUBLISHED[name].config, context_tokens=4096)
    found = sizes.total_params, sizes.active_params, sizes.active_params_without_embeddings
    assert found == (total, active, without)


def test_operations_are_the_mean_over_a_sequence():
    config = PUBLISHED["deepseek-v3"].config
    sizes = sizes_of(config, context_tokens=3)
    each = [flops_per_token(config, context, backward=True) for context in (1, 2, 3)]
    assert sizes.flops_per_token == pytest.approx(sum(each) / 3, rel=1e-12)
    assert sizes.forward_flops_per_token == pytest.approx(sizes.flops_per_token / 3, rel=1e-12)
    assert sizes.mtp_flops_per_token > 0
    assert sizes_of(PUBLISHED["kimi-k2"].config, context_tokens=3).mtp_flops_per_token == 0
