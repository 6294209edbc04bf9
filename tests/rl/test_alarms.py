"""Each alarm on a series that is wrong in its way alone, and none on one that is right."""

import math
import random

import pytest

from nalar.rl.alarms import RULES, Watch
from nalar.rl.config import AlarmsConfig, DistilConfig, RLConfig

STEPS = 60


def rl(**alarms):
    return RLConfig(steps=STEPS, alarms=AlarmsConfig(**alarms))


def good(step):
    """A run as one wants it: it learns, thinks longer, varies less."""
    done = step / STEPS
    values = {
        "reward": 0.2 + 0.6 * done,
        "first_log_ratio_rms": 1e-5,
        "rerouted_frac": 0.0,
        "max_staleness": 0.0,
        "silent_groups": 4.0 + round(8 * done),
        "kept_groups": 16.0,
        "dropped_groups": 0.0,
        "samples": 256.0,
        "verifier_errors": 0.0,
        "timeouts": 0.0,
        "looping_frac": 0.02,
        "skipped_updates": 0.0,
        "entropy": 0.9 - 0.5 * done,
        "accuracy/countdown": 0.2 + 0.6 * done,
        "response_tokens/countdown": 40 + 80 * done,
        "trained_tokens": 1000.0 + step,
        "counted_tokens": 1000.0 + step,
        "loss/policy": -0.01 * (step % 3),
        "loss/kl": 0.001,
    }
    if step % 20 == 0:
        values["held_out_pass_at_1/countdown"] = 0.2 + 0.4 * done
        values["held_out_pass_at_k/countdown"] = 0.6 + 0.3 * done
    return values


def alarms_of(change, teacher=None, **config):
    """Names of all alarms of a run in which `change(step, values)` has been at work, with their steps."""
    settings = rl(**config).model_copy(update={"distil": DistilConfig(teacher=teacher)})
    watch, found = Watch(settings, "float32"), []
    for step in range(STEPS + 1):
        values = good(step)
        change(step, values)
        found += [(alarm.name, alarm.step) for alarm in watch.see(step, values)]
    return found


def test_a_good_run_is_quiet():
    assert alarms_of(lambda step, values: None) == []


def test_what_bfloat16_rounds_away_is_no_alarm_and_what_is_set_holds():
    values = good(1) | {"first_log_ratio_rms": 0.05, "rerouted_frac": 0.1}

    def heard(dtype, **alarms):
        return [alarm.name for alarm in Watch(rl(**alarms), dtype).see(1, values)]

    both = ["sampler and trainer apart", "experts chosen otherwise"]
    assert heard("float32") == both and heard("bfloat16") == []
    assert heard("bfloat16", max_rerouted_frac=0.05) == both[1:]
    assert heard("float32", max_log_ratio_rms=0.2, max_rerouted_frac=0.2) == []


def test_older_policies_are_apart_from_the_trainer_without_alarm():
    def stale(step, values):
        if step % 2:
            values |= {"max_staleness": 1.0, "first_log_ratio_rms": 0.3}

    alarms = [name for name, _ in alarms_of(stale)]
    assert "sampler and trainer apart" not in alarms


def setting(metric, value, since=30):
    def change(step, values):
        if step >= since and metric in values:
            values[metric] = value

    return change


def gamed(step, values):
    for metric in list(values):
        if metric.startswith("held_out_pass_at_1"):
            values[metric] = 0.3 - 0.3 * step / STEPS


def narrowed(step, values):
    for metric in list(values):
        if metric.startswith("held_out_pass_at_k"):
            values[metric] = 0.8 - 0.3 * step / STEPS


BROKEN = {
    "not finite": setting("skipped_updates", 1.0),
    "wrong mask": setting("counted_tokens", 1500.0),
    "sampler and trainer apart": setting("first_log_ratio_rms", 0.3),
    "experts chosen otherwise": setting("rerouted_frac", 0.1),
    "stale samples": setting("max_staleness", 1.0),
    "nothing to learn from": setting("silent_groups", 16.0),
    "verifier fails": setting("verifier_errors", 12.0),
    "checks run over their time": setting("timeouts", 128.0),
    "reward and truth part": gamed,
    "fewer problems within reach": narrowed,
    "responses collapse": setting("response_tokens/countdown", 12.0),
    "entropy collapses": setting("entropy", 0.01),
    "repetition": setting("looping_frac", 0.6),
    "a part of the loss is idle": setting("loss/kl", 0.0),
}


def test_every_alarm_is_tried():
    assert set(BROKEN) == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_what_is_wrong_sets_off_its_alarm_alone_and_once(name):
    [(found, step)] = alarms_of(BROKEN[name])
    assert found == name
    assert 20 <= step <= STEPS


@pytest.mark.parametrize("name", RULES)
def test_with_a_teacher_groups_may_agree_and_the_policy_becomes_as_short_and_sure_as_it(name):
    expected = {"nothing to learn from", "responses collapse", "entropy collapses"}
    found = [found for found, _ in alarms_of(BROKEN[name], teacher="a folder")]
    assert found == ([] if name in expected else [name])


def test_a_run_that_has_learned_its_task_may_agree_with_itself():
    def change(step, values):
        if step >= 10:
            values["accuracy/countdown"] = 0.97
        if step >= 20:
            values |= {"silent_groups": 16.0, "entropy": 0.004}

    assert alarms_of(change) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_any_metric_that_is_not_finite_is_one_too_many(value):
    found = alarms_of(setting("entropy", value))
    assert ("not finite", 30) in found


def test_what_was_right_again_is_said_again():
    def change(step, values):
        if step in (10, 11, 40):
            values["verifier_errors"] = 128.0

    assert alarms_of(change) == [("verifier fails", 10), ("verifier fails", 40)]


def test_a_watch_that_is_shown_the_past_goes_on_as_the_one_before():
    whole, halves = Watch(rl(), "float32"), Watch(rl(), "float32")
    change = BROKEN["responses collapse"]
    seen = []
    for step in range(STEPS + 1):
        values = good(step)
        change(step, values)
        seen.append((step, values))
    expected = [str(alarm) for step, values in seen for alarm in whole.see(step, values)]
    for step, values in seen[:34]:  # the alarm is off, its cause has begun
        assert not halves.see(step, values)
    again = Watch(rl(), "float32")
    for step, values in seen[:34]:
        again.see(step, values)
    assert [
        str(alarm) for step, values in seen[34:] for alarm in again.see(step, values)
    ] == expected


def test_an_alarm_says_what_where_and_what_to_do():
    watch = Watch(rl(), "float32")
    [alarm] = watch.see(7, {"verifier_errors": 64, "samples": 256})
    assert "verifier fails at step 7" in str(alarm)
    assert "verifier_errors / samples is 0.25, its limit is 0.01" in str(alarm)
    assert "nalar samples" in str(alarm)


def test_limits_are_the_configs():
    assert alarms_of(BROKEN["verifier fails"], max_verifier_error_frac=0.5) == []


def test_series_of_any_numbers_raise_nothing():
    """Infinities of both signs, sums beyond the largest float."""
    rng = random.Random(0)
    odd = [0.0, 1.0, -1.0, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf]
    names = ["reward", "samples", "silent_groups", "kept_groups", "verifier_errors", "timeouts"]
    names += ["response_tokens/a", "entropy", "looping_frac", "loss/kl", "held_out_pass_at_1/a"]
    for _ in range(30):
        watch = Watch(RLConfig(steps=50), "float32")
        for step in range(1, 30):
            watch.see(step, {name: rng.choice(odd) for name in names if rng.random() < 0.8})


def models(at=20, gain=0.4, truth=0.0):
    """A model that scores has a say from a step on; its score rises by so much and held-out problems lose so much."""

    def change(step, values):
        values["reward"] = 0.5
        if step >= at:
            done = (step - at) / (STEPS - at)
            values["preference_score"] = 0.4 + gain * done
            if "held_out_pass_at_1/countdown" in values:
                values["held_out_pass_at_1/countdown"] = 0.6 - truth * done

    return change


def test_a_models_score_that_rises_at_the_price_of_the_truth_is_told_though_the_sum_stands_still():
    assert alarms_of(models(truth=0.4)) == [("reward and truth part", 40)]


def test_a_models_score_that_rises_with_the_truth_or_stands_still_is_quiet():
    assert alarms_of(models(truth=0.0)) == []
    assert [name for name, _ in alarms_of(models(gain=0.0, truth=0.4))] != ["reward and truth part"]


def test_what_was_lost_before_a_model_had_a_say_is_not_its_fault():
    def change(step, values):
        models(at=30)(step, values)
        if "held_out_pass_at_1/countdown" in values:
            values["held_out_pass_at_1/countdown"] = 0.9 if step == 0 else 0.5

    assert "reward and truth part" not in [name for name, _ in alarms_of(change)]
