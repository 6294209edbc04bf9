"""Rollouts that are saved read back as they were, and training on them is training on them."""

import json

import pytest
import torch

from nalar.config import ConfigError, UserError
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.model.transformer import Transformer
from nalar.optim.muonclip import MuonClip
from nalar.recipes.zero import zero_cpu
from nalar.rl import rollout as rollout_module
from nalar.rl.config import RolloutConfig
from nalar.rl.loop import replay_rl, train_rl
from nalar.rl.rollout import Collected
from nalar.rl.store import load_rollouts, path_of, read_rows, save_rollouts
from nalar.tasks.chain_sum import ChainSum
from nalar.tasks.countdown import Countdown

TASKS = [Countdown(), ChainSum()]


@pytest.fixture
def graded(monkeypatch):
    """Groups differ within, but for each third one."""
    count = iter(range(10**6))

    def totals(parts):
        is_silent = next(count) % 3 == 2
        return [0.5 if is_silent else 0.1 * i for i in range(len(parts))]

    monkeypatch.setattr(rollout_module, "totals", totals)


@pytest.fixture
def begin(tokenizer, rl_config):
    """The same weights every time, what trains them, and settings."""

    def make(steps=3, **rollout):
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "kv_lora_rank": 16}
        model = Transformer(zero_cpu().model.model_copy(update=shape))
        model.initialize(seed=0)
        config = rl_config(
            steps=steps,
            prompts_per_step=4,
            group_size=4,
            max_tokens=12,
            rollout=RolloutConfig(**rollout),
        )
        return model, MuonClip(model.named_parameters(), config.optim), config

    return make


@pytest.fixture
def sample(tokenizer, begin):
    """A run of RL that saves; returns its model and what each step said."""

    def run(folder, **rollout):
        model, optimizer, config = begin(**({"save_every_steps": 1} | rollout))
        seen = []
        train_rl(
            model,
            optimizer,
            Engine(model, EngineConfig(max_model_len=64, max_num_seqs=9)),
            tokenizer,
            TASKS,
            config,
            seed=3,
            first_step=0,
            on_step=lambda progress, groups: seen.append((progress, groups)),
            should_stop=lambda: False,
            save_dir=folder,
        )
        return model, seen

    return run


@pytest.fixture
def replay(tokenizer, begin):
    """Trains on the rollouts of a folder; returns its model, the steps done and what each said."""

    def run(folder, *, steps=3, change=lambda model: None):
        model, optimizer, config = begin(steps, debug="train_only", replay_dir=str(folder))
        with torch.no_grad():
            change(model)
        told = []
        done = replay_rl(
            model,
            optimizer,
            tokenizer,
            TASKS,
            config,
            folder,
            first_step=0,
            on_step=lambda progress, groups: told.append(progress),
            should_stop=lambda: False,
        )
        return model, done, told

    return run


@pytest.fixture
def with_a_line(tmp_path, make_rollout):
    """A file of two rollouts, in the second of which something was changed."""

    def write(change):
        group = [make_rollout([1], [2, 3], reward=float(i)) for i in range(2)]
        save_rollouts(tmp_path, 1, Collected(0, [group]))
        path = path_of(tmp_path, 1)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[1] |= change
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def same_weights(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_saved_step_reads_back_exactly(tmp_path, tokenizer, graded, sample):
    _, seen = sample(tmp_path, step_tokens=60, max_refills=1)
    assert sum(progress.dropped_groups for progress, _ in seen) > 0
    for step, (progress, groups) in enumerate(seen, start=1):
        found = load_rollouts(path_of(tmp_path, step), tokenizer)
        assert found.whole == groups
        assert len(found.groups) == progress.kept_groups
        assert found.version == step - 1
        rows = read_rows(path_of(tmp_path, step))
        assert [row.group for row in rows] == [i for i, g in enumerate(groups) for _ in g]


def test_first_last_and_every_nth_step_are_kept(tmp_path, graded, sample):
    sample(tmp_path / "r", save_every_steps=10)
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert names == ["step-000001.jsonl", "step-000003.jsonl"]
    sample(tmp_path / "none", save_every_steps=None)
    assert not (tmp_path / "none").exists()


def test_replayed_rollouts_train_to_the_same_weights(tmp_path, graded, sample, begin, replay):
    trained, seen = sample(tmp_path)
    assert not same_weights(begin()[0], trained)
    model, done, told = replay(tmp_path)
    assert done == 3
    assert same_weights(model, trained)
    assert [p.sampled_tokens for p in told] == [0, 0, 0]
    assert [p.first_log_ratio_rms for p in told] == [p.first_log_ratio_rms for p, _ in seen]
    assert told[0].first_log_ratio_rms < 1e-5
    # other weights than the sampler's are seen at the first step
    _, _, told = replay(tmp_path, steps=1, change=lambda model: model.model.norm.weight.mul_(1.5))
    assert told[0].first_log_ratio_rms > 1e-3
    with pytest.raises(UserError, match=r"3 files of rollouts for rl\.steps=4"):
        replay(tmp_path, steps=4)


def test_rollouts_alone_move_nothing(tmp_path, graded, sample, begin):
    model, seen = sample(tmp_path, debug="rollout_only")
    assert same_weights(model, begin()[0])
    assert len(seen) == 3 and len(list(tmp_path.iterdir())) == 3
    assert all(p.trained_tokens == 0 and p.entropy is None for p, _ in seen)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"logprobs": [-1.0]}, "different lengths"),
        ({"reward": None}, "reward"),
        ({"finish_reason": "tired"}, "finish_reason"),
        ({"schema_version": 2}, "schema version 2"),
    ],
)
def test_a_line_that_is_no_rollout_is_named(with_a_line, change, named):
    path = with_a_line(change)
    with pytest.raises(UserError, match=named) as error:
        read_rows(path)
    assert "line 2" in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token_ids": [10**6, 3]}, "the id 1000000 "),
        ({"token_ids": [-1, 3]}, "the id -1 "),
        ({"prompt_ids": [10**40]}, "the id 10{19} with"),
        ({"prompt_ids": []}, "an empty prompt"),
        ({"reward": float("nan")}, "not finite in reward"),
        ({"logprobs": [-1.0, float("-inf")]}, "not finite in logprobs"),
    ],
)
def test_what_nobody_can_train_on_is_named(with_a_line, tokenizer, change, named):
    path = with_a_line(change)
    with pytest.raises(UserError, match=named) as error:
        load_rollouts(path, tokenizer)
    assert "line 2" in str(error.value)


def test_an_empty_file_is_no_step(tmp_path):
    (tmp_path / "step-000001.jsonl").write_text("")
    with pytest.raises(UserError, match="no rollouts"):
        read_rows(tmp_path / "step-000001.jsonl")


@pytest.mark.parametrize(
    "settings", [{"debug": "train_only"}, {"replay_dir": "x"}, {"debug": None, "replay_dir": "x"}]
)
def test_a_folder_is_for_train_only(settings):
    with pytest.raises(ConfigError, match=r"rl\.rollout\.replay_dir"):
        RolloutConfig(**settings)
