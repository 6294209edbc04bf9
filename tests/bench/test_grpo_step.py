import json

import pytest

import grpo_step
from nalar.plan.model import sequence_flops
from timing import Limit


def rows_of(tmp_path, *flags):
    out = tmp_path / "grpo.json"
    grpo_step.main(["--tiny", "--device", "cpu", "--out", str(out), *flags])
    return {row["name"]: row for row in json.loads(out.read_text())["rows"]}


def test_the_whole_path_is_walked_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_step, "peer_seconds", lambda folder, *_: 2 * 16 * 5 / 7.0)
    rows = rows_of(tmp_path, "--models", "moe544m", "qwen1p5b")
    for name in ("grpo_step_moe544m", "grpo_step_qwen1p5b"):
        step = rows[name]
        parts = [rows[f"{name}_{part}"]["value"] for part in grpo_step.PARTS]
        assert min(parts) > 0 and rows[f"{name}_logprob_alone"]["value"] > 0
        assert step["value"] == pytest.approx(2 * 16 * 5 / sum(parts))
        assert step["peer"] == "trl" and step["peer_value"] == pytest.approx(7.0)


def test_a_response_is_rewarded_by_the_parity_of_its_ids_and_every_group_teaches(
    tmp_path, monkeypatch
):
    seen = []

    class Watched(grpo_step.Ours):
        def sampled(self, step):
            seen.append(super().sampled(step))
            return seen[-1]

    monkeypatch.setattr(grpo_step, "Ours", Watched)
    rows_of(tmp_path, "--models", "moe544m", "--peers")
    for group in (group for groups in seen for group in groups):
        assert all(len(r.response.token_ids) == 5 for r in group)  # no token ends a sample
        assert {r.reward for r in group} == {0.0, 1.0}
        assert all(r.reward == sum(r.response.token_ids) % 2 for r in group)


def test_a_tokenizer_has_bytes_for_every_id_and_none_for_text_but_bytes():
    tokenizer = grpo_step.tokenizer_of(300)
    assert tokenizer.vocab_size == 300 and tokenizer.token_bytes(299) == b"w299"
    text = "make 24 → 3"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text.encode())


def test_a_step_takes_at_least_its_products():
    limit = object.__new__(Limit)
    limit.bytes_per_s, limit.flops_per_s = 1e30, 1e12  # a machine that moves bytes for nothing
    args = type("", (), {"prompts": 2, "samples": 3, "prompt_tokens": 8, "tokens": 4})
    c = grpo_step.shape_of("moe544m", tiny=True)
    training = 6 * sequence_flops(c, 11, backward=True) / 1e12
    assert training < grpo_step.least_s(limit, c, 4, args) < 1.5 * training
    limit.bytes_per_s = 1.0
    assert grpo_step.least_s(limit, c, 4, args) > 1e3
