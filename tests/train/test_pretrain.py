"""Stopping and going on, to the bit."""

from dataclasses import replace

import torch

from nalar.optim.config import OptimConfig, ScheduleConfig
from nalar.train.checkpoint import Progress as Where
from nalar.train.checkpoint import load_checkpoint, load_optimizer, save_checkpoint, take_snapshot
from nalar.train.config import PretrainConfig
from nalar.train.pretrain import pretrain_slice, steps_per_slice

CONFIG = PretrainConfig(
    slice_tokens=6 * 96,
    max_slices=2,
    optim=OptimConfig(lr=0.01, adamw_lr=5e-3, qk_clip_tau=2.0),
    schedule=ScheduleConfig(warmup_steps=2),
)


def run(model, optimizer, batches, first_step, *, stop_at=None):
    """Slice by slice up to the end, or up to a step; returns the steps done and what was reported."""
    seen = []
    step = first_step
    while step < 12 and step != stop_at:
        step = pretrain_slice(
            model,
            optimizer,
            batches,
            CONFIG,
            first_step=step,
            on_step=lambda p: seen.append(replace(p, outcome=p.outcome.metrics())),
            should_stop=lambda: bool(seen) and seen[-1].step == stop_at,
        )
    return step, seen


def test_a_slice_has_its_tokens_whatever_the_batch():
    assert steps_per_slice(CONFIG, 96) == 6
    assert steps_per_slice(CONFIG, 100) == 6
    assert steps_per_slice(CONFIG, 10_000) == 1


def test_every_step_is_reported_once_with_its_tokens(model, make_optimizer, batches):
    done, seen = run(model, make_optimizer(model), batches, 0)
    assert done == 12
    assert [p.step for p in seen] == list(range(1, 13))
    assert [p.slice_index for p in seen] == [0] * 6 + [1] * 6
    assert [p.tokens for p in seen] == [96 * step for step in range(1, 13)]


def test_one_seed_gives_the_same_weights_to_the_bit(make_model, make_optimizer, batches):
    models = [make_model(seed) for seed in (0, 0, 1)]
    for model in models:
        run(model, make_optimizer(model), batches, 0)
    first, second, other = (m.state_dict() for m in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_stopping_at_any_step_and_going_on_changes_no_bit(
    make_model, make_optimizer, batches, tmp_path
):
    whole = make_model()
    _, expected = run(whole, make_optimizer(whole), batches, 0)
    for stop_at in (1, 4, 6, 11):  # within a slice, at its end, before the last step
        model = make_model()
        optimizer = make_optimizer(model)
        done, before = run(model, optimizer, batches, 0, stop_at=stop_at)
        assert done == stop_at
        folder = tmp_path / str(stop_at)
        snapshot = take_snapshot(model, optimizer, Where(stage="pretrain", step=done, logs={}))
        save_checkpoint(folder, snapshot, token_ids={}, save_tokenizer=lambda _: None)
        resumed = load_checkpoint(folder)
        again = make_optimizer(resumed.model)
        load_optimizer(folder, again)
        _, after = run(resumed.model, again, batches, resumed.progress.step)
        assert before + after == expected
        weights = whole.state_dict()
        assert all(torch.equal(t, weights[n]) for n, t in resumed.model.state_dict().items())
