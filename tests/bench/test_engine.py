import json
import random

import pytest
import torch

import engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.plan.model import count_parameters
from nalar.recipes.zero import zero_cpu
from timing import Limit

CONFIG = zero_cpu().model


@pytest.fixture
def limit(monkeypatch):
    """A machine that moves a byte and computes an operation in a nanosecond."""
    found = object.__new__(Limit)
    found.bytes_per_s = found.flops_per_s = 1e9
    return found


@pytest.mark.slow
def test_every_section_is_walked_through(tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / "engine.json"
    flags = ["--tiny", "--repeats", "1", "--threads", "1", "--only", "decode,nano,turn"]
    engine.main([*flags, "--out", str(out)])
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    decode, load = rows["demo_decode_b2"], rows["demo_mixed_load"]
    assert decode["peer"] in {
        name.removeprefix("demo_decode_b2_") for name in rows if "transformers" in name
    }
    assert rows["demo_decode_b2_ratio"]["value"] == decode["value"] / decode["peer_value"]
    assert load["peer"] == "transformers_padded" and 0 < load["roofline_frac"] < 1


def test_an_unknown_section_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        engine.main(["--only", "decode,nothing", "--out", str(tmp_path / "x.json")])
    assert "nano" in capsys.readouterr().err


def test_a_load_takes_at_least_its_prompts_and_each_step_of_all_that_go_on(limit):
    rng = random.Random(0)
    requests = [
        Request(tuple(rng.randrange(3, 50) for _ in range(n)), SamplingParams(max_tokens=m))
        for n, m in ((4, 1), (6, 3))
    ]
    # The prompts give the first token of each; the second request alone takes two steps more.
    prompts = engine.load_s(limit, CONFIG, 4, [requests[0]])
    both = engine.load_s(limit, CONFIG, 4, requests)
    second = [engine.decode_s(limit, CONFIG, 4, 1, context) for context in (7, 8)]
    alone = engine.load_s(limit, CONFIG, 4, [requests[1]])
    assert both == pytest.approx(prompts + alone)
    assert both > sum(second)


def test_more_rows_touch_more_experts_but_never_more_than_there_are(limit):
    limit.flops_per_s = 1e30  # bytes alone
    taken = [engine.decode_s(limit, CONFIG, 4, batch, 0) for batch in (1, 8, 10_000)]
    assert taken == sorted(taken)
    assert taken[-1] == pytest.approx(count_parameters(CONFIG).total_params * 4 / 1e9)


def test_built_models_have_the_weights_that_training_starts_from():
    model = engine.built(CONFIG, torch.device("cpu"), torch.float32)
    assert float(model.model.norm.weight.min()) == 1
    std = float(model.model.embed_tokens.weight.std())
    assert std == pytest.approx(CONFIG.initializer_range, rel=0.05)
