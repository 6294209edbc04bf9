"""A run's rollouts, kept in its folder, and the halves of its loop one at a time."""

import pytest

from nalar.pipeline import policy
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.state import Outcome
from nalar.rl import rollout as rollout_module


@pytest.fixture(scope="module")
def small(shrunk):
    """Two steps of RL behind a handful of pretraining."""
    config = shrunk.model_dump()
    config["pretrain"] |= {"slice_tokens": 6 * config["packing"]["step_tokens"], "max_slices": 1}
    config["probe"] = None
    config["rl"] |= {"steps": 2, "save_every_steps": 2}
    config["rl"]["alarms"] |= {"held_out_every_steps": 1, "held_out_problems": 2, "held_out_k": 2}
    config["evals"] |= {"problems": 1, "tasks": ("chain_sum",)}

    def make(**rollout):
        return ZeroConfig.model_validate(config | {"rl": config["rl"] | {"rollout": rollout}})

    return make


def weights(run):
    return (run.path / "checkpoints" / "rl-000002" / "model.safetensors").read_bytes()


def test_a_run_keeps_its_rollouts_and_another_trains_on_them(
    small, work, make_recorder, monkeypatch
):
    # So that there is something to learn, whatever the model says.
    monkeypatch.setattr(
        rollout_module, "totals", lambda parts: [float(i % 2) for i in range(len(parts))]
    )
    first = work.create("first", small(save_every_steps=1))
    assert work.go(first, until="rl") is Outcome.FINISHED
    folder = first.path / "rollouts"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-000001.jsonl",
        "step-000002.jsonl",
    ]
    watching = make_recorder()
    second = work.create("second", small(debug="train_only", replay_dir=str(folder)))
    with monkeypatch.context() as without:
        without.delattr(policy, "engine_for")
        assert work.go(second, until="rl", observer=watching) is Outcome.FINISHED
    for run, has_looked in ((first, True), (second, False)):
        assert has_looked == any(
            "held_out_pass_at_1/chain_sum" in m.values for m in run.metrics("rl")
        )
    assert weights(second) == weights(first)
    (note,) = [note for note in watching.notes if note.startswith("replay: ")]
    assert "apart at the first step" in note
    assert not (second.path / "rollouts").exists()
    assert second.stage_total("rl").tokens == 0 < first.stage_total("rl").tokens

    third = work.create("third", small(debug="rollout_only", save_every_steps=1))
    assert work.go(third, until="rl") is Outcome.FINISHED
    base = (third.path / "checkpoints" / "pretrain-000006" / "model.safetensors").read_bytes()
    assert weights(third) == base != weights(first)
    kept = (third.path / "rollouts" / "step-000001.jsonl").read_bytes()
    assert kept == (folder / "step-000001.jsonl").read_bytes()
    assert third.stage_total("rl").flops < first.stage_total("rl").flops
