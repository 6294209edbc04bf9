import json

import pytest
from tests.cli.conftest import TASK_RESULT

from nalar.evals.card import model_card
from nalar.evals.report import Report

COST = {"tokens": 1000, "flops": 2e12, "wall_s": 60.0, "usd": 0.01, "energy_wh": None}


def report(**changes):
    return Report.model_validate(
        {
            "name": "r",
            "recipe": "zero",
            "created": "now",
            "command": "nalar demo",
            "seed": 3,
            "commit": "abc",
            "dirty": False,
            "is_complete": True,
            "results": {"before": {}, "after": {"countdown": TASK_RESULT}},
            "held_out": {},
            "difference": {},
            "tries": {},
            "baselines": None,
            "stages": [],
            "total": COST,
            "usd_per_hour": 0.05,
            "probe": [],
            "model": None,
            "hardware": {"cpu": "A | CPU", "cores": 2, "memory_bytes": 1, "platform": "p"},
            "software": {},
            "curves": {},
            "samples": [],
            "config": {"rl": {"tasks": ["countdown"]}, "tools": {"names": ["calculator"]}},
            **changes,
        }
    )


def test_a_card_says_what_was_measured_where_and_for_what():
    card = model_card("me/m", report(), licence="mit", contact="me@example.org")
    assert card.startswith('---\nlicense: "mit"\n')
    assert "| countdown | 4 × 8 | 50.0% (40.0 to 60.0) | 90.0% (80.0 to 100.0) | 80 |" in card
    for words in (
        "A \\| CPU, 2 cores",
        "tools at hand: calculator",
        "`countdown`",
        "0.0100 USD",
        "commit `abc`",
        "not meant for",
        "me@example.org",
    ):
        assert words in card


def test_a_card_claims_nothing_that_is_not_known():
    card = model_card("me/m", None, licence=None, contact=None)
    assert "license:" not in card
    assert "None were measured." in card
    assert card.count("Its publisher has not named one.") == 2
    unfinished = report(is_complete=False, results={"before": {}, "after": {}}, total=None)
    card = model_card("me/m", unfinished, licence=None, contact=None)
    assert "has not come to its end" in card
    assert "None were measured." in card
    assert "No receipt." in card


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    return str(tmp_path)


@pytest.fixture
def sent(monkeypatch):
    """Calls of the upload, which never leaves."""
    calls = []

    def upload(repo, files, card, **settings):
        calls.append((repo, sorted(files), settings))
        return "https://hub/commit/1"

    monkeypatch.setattr("nalar.model.upload.upload", upload)
    return calls


def test_a_dry_run_shows_files_and_card_and_sends_nothing(nalar_, folder, sent):
    called = nalar_("push", folder, "me/m", "--dry-run", "--json")
    assert (called.code, sent) == (0, [])
    document = called.document
    assert document["files"]["model.safetensors"] == 5
    assert document["commit"] is None
    assert "## Intended use" in document["card"]
    assert "nothing was sent" in called.err


def test_a_push_is_private_and_takes_its_token_from_the_environment(
    nalar_, folder, sent, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert nalar_("push", folder, "me/m", "--json").document["commit"] == "https://hub/commit/1"
    assert sent == [
        ("me/m", ["config.json", "model.safetensors"], {"public": False, "token": "hf_x"})
    ]
    assert "hf_x" not in json.dumps(nalar_("push", folder, "me/m", "--json").document)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["me/m", "--public"], "--licence and --contact"),
        (["m"], "OWNER/NAME"),
        (["me/m", "--card", "nope.md"], "nope.md"),
    ],
)
def test_what_must_not_go_is_refused(nalar_, folder, sent, words, says):
    called = nalar_("push", folder, *words)
    assert (called.code, sent) == (2, [])
    assert says in called.err
