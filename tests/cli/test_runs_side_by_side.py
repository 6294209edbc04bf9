"""`nalar runs compare` and `nalar runs plot`, as they are typed."""

import pytest

from nalar.recipes.zero import zero_tiny
from nalar.run import Receipt, Run


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("slow", 0), ("fast", 1)):
        config = zero_tiny().model_copy(update={"seed": seed}).model_dump(mode="json")
        run = Run.create(tmp_path / "runs", name, config, "nalar pretrain", seed)
        for step in range(1, 21):
            values = {"loss": 2.0 - 0.01 * step * (1 + seed), "tokens": 9 * step, "wall_s": step}
            run.log_metrics("pretrain", step, values)
        run.record(Receipt("pretrain", 180, 1e6, 2.0, 0.5, None, "2026-01-01T00:00:00+00:00"))


def test_compare_shows_what_differs_and_where_training_ended(two, nalar_):
    called = nalar_("runs", "compare", "slow", "fast")
    assert called.code == 0, called.err
    rows = [line.split() for line in called.out.splitlines()]
    assert ["seed", "0", "1"] in rows
    assert ["loss", "1.805", "1.61"] in rows
    assert "180 tokens, 2.0 s, $0.50" in called.out


def test_compare_gives_a_program_the_same(two, nalar_):
    document = nalar_("runs", "compare", "slow", "fast", "--json").document
    assert document["schema_version"] == 1
    assert [run["name"] for run in document["runs"]] == ["slow", "fast"]
    assert document["settings"] == [{"name": "seed", "values": [0, 1]}]
    assert document["receipts"]["pretrain"][0]["usd"] == 0.5


def test_plot_writes_the_picture_and_gives_a_program_its_points(two, nalar_, tmp_path):
    flags = ["--metric", "loss", "--x", "tokens", "--out", "deep/loss.svg", "--json"]
    called = nalar_("runs", "plot", "slow", "fast", *flags)
    assert called.code == 0, called.err
    document = called.document
    assert (document["stage"], document["metric"], document["x"]) == ("pretrain", "loss", "tokens")
    assert document["series"][1]["run"] == "fast"
    assert document["series"][1]["x"][-1] == 180
    assert b"<svg" in (tmp_path / "deep" / "loss.svg").read_bytes()


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["compare", "slow"], "nalar runs compare"),
        (["compare"], "nalar runs compare"),
        (["compare", "slow", "slaw"], "runs/slaw"),
        (["plot"], "nalar runs plot"),
        (["plot", "slow", "--out", "loss.exe"], "--out"),
        (["plot", "slow", "--smooth", "0"], "--smooth"),
        (["plot", "slow", "--metric", "lost"], "slow"),
        (["plot", "slow", "--stage", "rl"], "slow, stage rl"),
        (["plot", "slow", "--first-step", "99"], "--first-step"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_name(words, at, two, nalar_, tmp_path):
    called = nalar_("runs", *words, "--json")
    assert (called.code, called.document["error"]["at"]) == (2, at)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_text_of_somebody_elses_run_steers_no_terminal(two, nalar_, tmp_path):
    run = Run.create(tmp_path / "runs", "odd", {"a\x1b[2J": "b\x1b]0;x\x07"}, "nalar", 0)
    run.log_metrics("pretrain", 1, {"loss\x1b[2J": 1.0, "loss": 1.0})
    for words in (["compare", "slow", "odd"], ["plot", "odd", "--metric", "loss\x1b[2J"]):
        called = nalar_("runs", *words)
        assert called.code == 0, called.err
        assert not set("\x1b\x07") & set(called.out + called.err)
