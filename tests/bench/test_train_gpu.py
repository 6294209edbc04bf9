import json
import sys

import pytest

import parity
import profile_step
import train_gpu


def run(monkeypatch, tmp_path, *flags):
    out = tmp_path / "rows.json"
    argv = ["train_gpu.py", "--tiny", "--device", "cpu", "--out", str(out), *flags]
    monkeypatch.setattr(sys, "argv", argv)
    train_gpu.main()
    return {row["name"]: row for row in json.loads(out.read_text())["rows"]} if out.exists() else {}


@pytest.mark.slow
def test_the_whole_path_is_walked_on_a_cpu(monkeypatch, tmp_path):
    rows = run(monkeypatch, tmp_path, "--models", "moe544m", "dense234m")
    for name in ("train_moe544m_adamw", "train_moe544m_muonclip", "train_dense234m_adamw"):
        assert rows[name]["value"] > 0 and rows[name]["peer"] == "transformers_eager"
    assert rows["train_moe544m_adamw_compiled"]["roofline_frac"] > 0


def test_a_row_is_the_best_way_of_its_optimizer():
    speed = {"adamw": 10.0, "adamw_compiled": 20.0, "muonclip": 5.0, "transformers_compiled": 8.0}
    rows = {row.name: row for row in train_gpu.rows_of("m", speed, 0.01)}
    best = rows["train_m_adamw"]
    assert (best.value, best.peer, best.peer_value) == (20.0, "transformers_compiled", 8.0)
    assert best.roofline_frac == pytest.approx(0.2)
    assert rows["train_m_adamw_eager"].value == 10.0
    assert rows["train_m_muonclip"].value == rows["train_m_muonclip_eager"].value == 5.0


def test_a_profile_adds_up_and_finds_what_is_idle(monkeypatch, tmp_path, capsys):
    spans = [("a", 0.0, 4e3), ("b", 2e3, 5e3), ("a", 8e3, 10e3)]
    assert profile_step.union((start, end) for _, start, end in spans) == 7e3
    lines = profile_step.table(spans, steps=2)
    assert lines[0] == "a step: 5.00 ms, idle 30.0%, 2 kernels"
    assert lines[2].split() == ["3.000", "85.7%", "1.0", "a"]
    assert profile_step.table([], steps=1) == ["nothing ran"]
    run(monkeypatch, tmp_path, "--profile", "--ways", "adamw")
    assert "waits a step" in capsys.readouterr().out


@pytest.mark.slow
def test_losses_with_and_without_kernels_stand_side_by_side(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parity, "ROWS", 2)
    monkeypatch.setattr(parity, "TOKENS", 16)
    rows = run(monkeypatch, tmp_path, "--parity")
    assert rows["parity plain again: largest difference"]["value"] == 0
    assert rows["parity all, compiled: largest difference"]["value"] < 1e-3
    assert "token_logprobs" in capsys.readouterr().out
