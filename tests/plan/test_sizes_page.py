"""docs/sizes.md says what the code computes."""

import re
from pathlib import Path

from nalar.evals.units import scaled
from nalar.plan.model import count_parameters
from nalar.plan.published import PUBLISHED
from nalar.plan.sizes import Sizes, sizes_of

PAGE = (Path(__file__).parents[2] / "docs" / "sizes.md").read_text(encoding="utf-8")
KIMI = PUBLISHED["kimi-k2"].config


def cells(sizes: Sizes) -> tuple[str, ...]:
    return (
        f"{sizes.total_params:,}",
        f"{sizes.active_params:,}",
        f"{sizes.active_params_without_embeddings:,}",
        scaled(sizes.flops_per_token, "FLOP"),
        scaled(sizes.weight_bytes["bfloat16"], "B"),
        scaled(sizes.kv_bytes_per_token["bfloat16"], "B"),
    )


def test_the_table_has_every_published_model_as_it_is_counted():
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", PAGE, re.MULTILINE)
    shown = {name: tuple(row.split(" | ")) for name, row in rows}
    assert shown == {
        name: cells(sizes_of(published.config, context_tokens=4096))
        for name, published in PUBLISHED.items()
    }


def test_the_readings_of_k2_are_as_they_are_counted():
    readings = re.findall(
        r"^\| (?:as|all|one) [^|]+ \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE
    )
    released = count_parameters(KIMI)
    sparse = count_parameters(KIMI.model_copy(update={"first_k_dense_replace": 0}))
    deeper = count_parameters(KIMI.model_copy(update={"num_nextn_predict_layers": 1}))
    expected = [
        (
            count.total_params + count.balance_params + count.mtp_params,
            count.active_params + count.balance_params,
        )
        for count in (released, sparse, deeper)
    ]
    assert readings == [(f"{every:,}", f"{active:,}") for every, active in expected]
    assert all(round(every / 1e10) == 104 for every, _ in expected[1:])
    without = released.active_params + released.balance_params - released.embedding_params
    assert f"{without:,}" in PAGE
