"""Numbers as a reader wants them."""

import pytest

from nalar.evals import units
from nalar.evals.results import Estimate


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (units.percent(0.5612), "56.1%"),
        (units.percent(None), "–"),
        (units.interval(Estimate(mean=0.5, ci95=(0.4, 0.613))), "40.0–61.3"),
        (units.scaled(0), "0"),
        (units.scaled(999), "999"),
        (units.scaled(999_999), "1.00M"),
        (units.scaled(12_345), "12.3k"),
        (units.scaled(7.854e12, "FLOP"), "7.85 TFLOP"),
        (units.duration(8.04), "8.0 s"),
        (units.duration(59.96), "1 min 00 s"),
        (units.duration(402.2), "6 min 42 s"),
        (units.duration(3725), "1 h 02 min"),
        (units.money(0), "$0.00"),
        (units.money(0.00558), "$0.0056"),
        (units.money(0.0000123), "$0.000012"),
        (units.money(1294.5), "$1,294.50"),
        (units.energy(None), "–"),
        (units.energy(3.456), "3.46 Wh"),
        (units.size(8 * 2**30), "8.0 GiB"),
    ],
)
def test_numbers_read_as_a_person_would_write_them(said, wanted):
    assert said == wanted
