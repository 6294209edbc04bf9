"""`nalar usage` on a ledger of a few rows, beside the server that has it open."""

from datetime import UTC, datetime

import pytest

from nalar.server.keys import KeyRing
from nalar.server.ledger import Ledger, Row

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ring = KeyRing.open(tmp_path / "keys.json", must_exist=False)
    key, _ = ring.create("ann")
    opened = Ledger.open(tmp_path / "ledger.db")

    def row(i, **values):
        base = {
            "time_s": NOON,
            "key_id": key.id,
            "endpoint": "/",
            "model": "m",
            "prompt_tokens": 1000,
            "cached_tokens": 800,
            "completion_tokens": 500,
            "reasoning_tokens": 400,
            "cost_usd": 0.001344,
        }
        return Row(request_id=str(i), **(base | values))

    opened.add([row(1), row(2), row(3, key_id=""), row(4, time_s=NOON + 3 * DAY_S, model="n")])
    yield key
    opened.close()


def test_sums_by_key_with_their_names(ledger, nalar_):
    shown = nalar_("usage", "ledger.db", "--keys", "keys.json")
    assert shown.code == 0
    lines = [line for line in shown.out.splitlines() if "$" in line]
    assert f"ann ({ledger.id})" in "".join(lines) and "(no key)" in lines[0]
    assert "$0.005376" in lines[-1] and "3,200" in lines[-1] and "4,000" in lines[-1]


def test_the_form_for_programs(ledger, nalar_):
    form = nalar_("usage", "--ledger", "ledger.db", "--by", "model", "day", "--json").document
    assert (form["schema_version"], form["by"]) == (1, ["day", "model"])
    assert [(s["day"], s["model"], s["requests"]) for s in form["sums"]] == [
        ("2026-11-29", "m", 3),
        ("2026-12-02", "n", 1),
    ]
    assert form["sums"][0] == {
        "key": None,
        "day": "2026-11-29",
        "model": "m",
        "requests": 3,
        "prompt_tokens": 3000,
        "cached_tokens": 2400,
        "completion_tokens": 1500,
        "reasoning_tokens": 1200,
        "cost_usd": 0.004032,
    }
    assert form["total"]["cost_usd"] == 0.005376


@pytest.mark.parametrize(
    ("span", "count"),
    [
        ([], 4),
        (["--since", "2026-11-29", "--until", "2026-11-29"], 3),
        (["--since", "2026-11", "--until", "2026-11"], 3),
        (["--since", "2026-12"], 1),
        (["--until", "2026-11-28"], 0),
    ],
)
def test_both_ends_of_a_stretch_are_in_it(ledger, nalar_, span, count):
    called = nalar_("usage", "ledger.db", *span, "--json")
    assert called.document["total"]["requests"] == count


@pytest.mark.parametrize(
    "words",
    [
        ["nothing.db"],
        ["keys.json"],
        ["ledger.db", "--since", "2026-13"],
        ["ledger.db", "--since", "9999-12-31"],
        ["ledger.db", "--until", "9999-12-31"],
        ["ledger.db", "--since", "0000-01"],
        ["ledger.db", "--since", "yesterday"],
        ["ledger.db", "--by", "user"],
        [],
    ],
)
def test_what_cannot_be_read_is_bad_input(ledger, nalar_, words):
    called = nalar_("usage", *words, "--json")
    assert called.code == 2 and called.document["error"]["got"]
