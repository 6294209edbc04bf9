"""r1-from-hf, from a checkpoint with another chat template and a file of problems, through all of its stages."""

import json
import shutil
from pathlib import Path

import pytest

from nalar.cli.r1 import R1, configured
from nalar.evals.r1_report import build_r1
from nalar.pipeline.r1 import run_r1
from nalar.pipeline.state import Outcome
from nalar.recipes.r1 import r1_from_hf
from nalar.run import Run
from nalar.tasks.registry import open_task

CAP, PROMPT = 40, 40
RL = {
    "rl.steps": 1,
    "rl.prompts_per_step": 2,
    "rl.max_tokens": CAP,
    "evals.max_tokens": CAP,
    "max_prompt_tokens": PROMPT,
}
COLLECTED = {
    "problems_per_task": 24,
    "max_tokens": CAP,
    "filters.correct": False,
    "filters.thought": False,
    "filters.language": None,
}
PACKED = {"packing.step_tokens": 128, "packing.document_tokens": 96}
CHANGES = {
    **dict.fromkeys(("zero", "rl1", "rl2"), RL),
    **dict.fromkeys(("cold_start_data", "rejection_sampling"), COLLECTED),
    **dict.fromkeys(("cold_start", "sft"), PACKED),
    "measure": {
        "evals.problems": 2,
        "evals.k": 1,
        "evals.max_tokens": CAP,
        "max_prompt_tokens": PROMPT,
        "thinking_budget": 8,
    },
}


@pytest.fixture
def base(finished, tmp_path) -> Path:
    """A small model that ends its turns, as if somebody else had published it."""
    path = tmp_path / "theirs"
    shutil.copytree((finished[0].path / "model").resolve(), path)
    (path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return path


@pytest.fixture
def problems(tmp_path) -> Path:
    task, path = open_task("chain_sum", at="tasks"), tmp_path / "problems.jsonl"
    given = task.problems("train", 80, 0)
    lines = [json.dumps({"prompt": one.prompt, "answer": task.gold(one)}) for one in given]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_all_stages_run_from_a_checkpoint_of_somebody_elses(
    full, base, problems, recorder, tmp_path
):
    changes = [
        f"{stage}.{name}={json.dumps(value)}"
        for stage, settings in CHANGES.items()
        for name, value in settings.items()
    ]
    cache = [f"{stage}.cache_dir={tmp_path / 'cache'}" for stage in ("cold_start", "sft")]
    asked = R1(
        base=str(base),
        problems=(str(problems),),
        full=full,
        threads=1,
        device="cpu",
        dtype="float32",
        set=(*changes, *cache),
    )
    config = configured(asked, r1_from_hf())
    assert (config.zero.lora is None) == full
    run = Run.create(tmp_path, "r", config.model_dump(mode="json"), "nalar r1", config.seed)
    assert run_r1(config, run, recorder, lambda: False) is Outcome.FINISHED
    report = build_r1(run)
    assert report.is_complete
    assert list(report.models) == ["base", "zero", "dev1", "dev2", "dev3", "final"]
    assert (run.path / "adopted" / "base" / "chat_template.jinja").is_file()
    assert set(report.data["rejection_sampling"].origins) == {"self"}
