"""LiteLLM, lm-eval and inspect_ai, in an environment of their own (`make clients`), against a server on a socket."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from nalar.model.weights import load_model

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def run(tmp_path):
    """Give a script of tests/clients its arguments; what it prints in its last line."""
    if not PYTHON.exists():
        give_up = pytest.fail if os.environ.get("NALAR_ALL_TIERS") else pytest.skip
        give_up("no .venv-clients: make clients")
    keep = ("PATH", "LANG", "HOME")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    env |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(script, *args):
        done = subprocess.run(
            [str(PYTHON), str(ROOT / "tests" / "clients" / script), *map(str, args)],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@torch.inference_mode()
def test_lm_eval_reads_the_models_own_log_probabilities(
    run, server, model_folder, tokenizer, tmp_path
):
    found = run("ask_lm_eval.py", server, tmp_path)
    model = load_model(model_folder).eval()
    for doc, scores in zip(found["docs"], found["scores"], strict=True):
        num_context = len(tokenizer.encode(doc["q"]))
        assert len(scores) == len(doc["options"])
        for option, (score, is_greedy) in zip(doc["options"], scores, strict=True):
            ids = tokenizer.encode(f"{doc['q']} {option}")
            logits_TV = model.logits(model(torch.tensor([ids])).states)[0].float()
            logprobs_TV = logits_TV.log_softmax(-1)
            places = range(num_context, len(ids))
            own = sum(float(logprobs_TV[i - 1, ids[i]]) for i in places)
            assert score == pytest.approx(own, abs=1e-3)
            assert is_greedy == all(int(logits_TV[i - 1].argmax()) == ids[i] for i in places)
    assert len(found["answers"]) == 2 and all(isinstance(a, str) for a in found["answers"])
    assert any(found["answers"])


def test_litellm_streams_calls_and_translates(run, server):
    found = run("ask_litellm.py", server)
    assert found["whole"] == found["streamed"] and all(found["whole"])
    assert found["tokens"][0] == found["tokens"][1] > found["reasoning"] == 6
    name, arguments = found["call"]
    assert name == "add" and 0 <= json.loads(arguments)["a"] <= 9
    assert found["finish"] == "tool_calls" and found["error"] == "NotFoundError"
    assert found["response"] and 0 < found["message"] <= 20


def test_inspect_runs_a_task_over_chats_and_over_responses(run, server, tmp_path):
    # Over responses this client sends of an extra body only what OpenAI's own API knows, so no budget and no seed.
    for found, budget in zip(run("ask_inspect.py", server, tmp_path), (6, 60), strict=True):
        assert (found["status"], found["error"]) == ("success", None)
        assert "reasoning" in found["parts"]
        given, said, reasoning = found["tokens"]
        assert given > 0 and said >= reasoning and 0 < reasoning <= budget
