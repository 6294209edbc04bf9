import subprocess
import sys

import pytest

from nalar.engine.config import EngineConfig
from nalar.engine.scheduler import SampleId, Scheduler
from nalar.engine.sequence import Request, SamplingParams


def scheduler_of(ns, max_num_seqs, lengths=None, max_prefill_tokens=1000):
    lengths = lengths or [3] * len(ns)
    requests = [
        Request((1,) * length, SamplingParams(n=n, max_tokens=4))
        for n, length in zip(ns, lengths, strict=True)
    ]
    config = EngineConfig(
        max_num_seqs=max_num_seqs, max_model_len=100, max_prefill_tokens=max_prefill_tokens
    )
    return Scheduler(requests, config)


def test_scheduling_needs_no_torch():
    code = (
        "import sys, nalar.engine.scheduler, nalar.engine.config; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_samples_are_admitted_in_order_and_each_prompt_is_prefilled_once():
    scheduler = scheduler_of([3, 2], max_num_seqs=2)
    first = scheduler.admit()
    assert first.samples == (SampleId(0, 0), SampleId(0, 1))
    assert (first.prefills, first.keep_prefill) == (((0,),), 0)
    scheduler.release([0, 1])
    second = scheduler.admit()
    assert second.samples == (SampleId(0, 2), SampleId(1, 0))
    assert (second.prefills, second.keep_prefill) == (((1,),), 1)
    scheduler.release([0, 1])
    third = scheduler.admit()
    assert third.samples == (SampleId(1, 1),)
    assert (third.prefills, third.keep_prefill) == ((), None)
    scheduler.release([0])
    assert not scheduler.has_work


def test_gaps_are_closed_by_rows_from_the_end():
    scheduler = scheduler_of([6], max_num_seqs=6)
    scheduler.admit()
    release = scheduler.release([1, 2, 5])
    assert [s.sample_id for s in release.samples] == [1, 2, 5]
    assert (release.sources, release.targets) == ((3, 4), (1, 2))
    assert [s.sample_id for s in scheduler.running] == [0, 3, 4]


@pytest.mark.parametrize("rows", [[0], [5], [0, 5], [0, 1, 2, 3, 4, 5], [3, 4, 5], [0, 2, 4]])
def test_a_release_loses_no_running_sample(rows):
    scheduler = scheduler_of([6], max_num_seqs=6)
    scheduler.admit()
    scheduler.release(rows)
    assert {s.sample_id for s in scheduler.running} == set(range(6)) - set(rows)


def test_prefill_calls_stay_within_the_cap_with_padding_counted():
    scheduler = scheduler_of([1] * 5, 5, lengths=[2, 2, 5, 5, 30], max_prefill_tokens=10)
    assert scheduler.admit().prefills == ((0, 1), (2, 3), (4,))


def test_a_single_finished_row_leaves_a_small_batch_at_once():
    scheduler = scheduler_of([4], max_num_seqs=4)
    scheduler.admit()
    assert not scheduler.should_release(0)
    assert scheduler.should_release(1)
