"""Money by hand, and exactly."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalar.config import ConfigError
from nalar.server.prices_config import PriceTable, picodollars, usd

DEEPSEEK = PriceTable(input_usd=0.56, cached_input_usd=0.14, output_usd=2.24)
TOKENS = st.integers(0, 200_000)


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def test_a_bill_by_hand():
    # 200 fresh at 0.56, 800 cached at 0.14, 500 out at 2.24 a million: 112 + 112 + 1,120 micro-dollars.
    assert DEEPSEEK.cost_usd(Usage(1000, 800, 500)) == 0.001344
    assert DEEPSEEK.cost_picodollars(Usage(1000, 800, 500)) == 1_344_000_000
    assert DEEPSEEK.cost_usd(Usage(0, 0, 0)) == 0
    assert PriceTable().cost_usd(Usage(1000, 0, 1000)) == 0
    assert PriceTable(input_usd=1.0).cost_usd(Usage(10, 10, 0)) == 1e-5, "no price of its own"


@given(TOKENS, TOKENS, TOKENS)
def test_costs_are_exact_and_never_above_what_was_reserved(fresh, cached, written):
    usage = Usage(fresh + cached, cached, written)
    exact = Fraction(56, 100) * fresh + Fraction(14, 100) * cached + Fraction(224, 100) * written
    assert DEEPSEEK.cost_picodollars(usage) == exact * 10**6
    assert DEEPSEEK.cost_picodollars(usage) <= DEEPSEEK.most_picodollars(fresh + cached, written)
    dear_cache = PriceTable(input_usd=0.1, cached_input_usd=0.2)
    assert dear_cache.cost_picodollars(usage) <= dear_cache.most_picodollars(
        fresh + cached, written
    )


@given(st.integers(0, 1000 * 10**12))
def test_a_cost_as_a_float_stands_for_one_sum(cost):
    assert picodollars(usd(cost)) == cost


@pytest.mark.parametrize("price", [0.0000001, -1, float("nan"), float("inf")])
def test_prices_that_cannot_be_added_up_are_refused(price):
    with pytest.raises((ConfigError, ValueError), match="input_usd"):
        PriceTable(input_usd=price)
    assert PriceTable(input_usd=0.000001).cost_picodollars(Usage(1, 0, 0)) == 1


def test_the_bill_in_the_documents_is_what_the_server_would_write():
    text = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:first turn|second turn) \| (.+) \|$", text, re.MULTILINE)
    shown = [[float(cell.strip(" $").replace(",", "")) for cell in row.split("|")] for row in rows]
    assert len(shown) == 2
    for prompt, cached, written, *parts, cost in shown:
        whole = Usage(int(prompt), int(cached), int(written))
        assert DEEPSEEK.cost_usd(whole) == cost
        alone = (Usage(whole.prompt_tokens - whole.cached_tokens, 0, 0), Usage(0, 0, int(written)))
        cached_cost = Usage(int(cached), int(cached), 0)
        assert [DEEPSEEK.cost_usd(u) for u in (alone[0], cached_cost, alone[1])] == parts
    (total,) = re.findall(
        r"^\| both \| 3,100 \| 1,696 \| 1,300 \| .* \$(\S+) \|$", text, re.MULTILINE
    )
    assert float(total) == round(sum(row[-1] for row in shown), 10)
    without = DEEPSEEK.cost_usd(Usage(1900, 0, 800))
    assert f"would have cost ${without:.8f}" in text
