"""Documents made in other processes: the same to the bit, in any order, and nothing hangs or stays behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nalar
from nalar.config import UserError
from nalar.data.ahead import SLACK, Ahead
from nalar.data.config import CorpusConfig, LessonConfig, PackingConfig, TokenizerConfig
from nalar.data.mixture import Mixture, ProceduralStream
from nalar.data.packing import Packing, cut
from nalar.data.tokenizer import Tokenizer

SOURCE = Path(nalar.__file__).parents[1]
CORPUS = CorpusConfig(lessons=(LessonConfig(task="linear,max_solution=9"),))


@pytest.fixture(scope="module")
def packing():
    tokenizer = Tokenizer.train(["3+4-5+6", "2*x=4"] * 4, TokenizerConfig(vocab_size=262))
    return Packing(tokenizer, CORPUS, PackingConfig(step_tokens=300, document_tokens=40), seed=3)


@pytest.fixture(scope="module")
def ahead(packing):
    """Two processes that all tests ask which do not end them."""
    with contextlib.closing(Ahead(packing, 2)) as ahead:
        yield ahead


def lists(documents):
    return [list(map(int, ids)) for ids in documents]


@pytest.mark.parametrize("room", [1, 2, 39, 40, 41, 300])
@pytest.mark.parametrize("more", [0, 1, SLACK])
def test_what_is_cut_from_more_is_what_would_have_been_taken(packing, room, more):
    whole = packing.take(7, room)
    assert sum(len(ids) - 1 for ids in whole) == room
    assert list(cut(packing.take(7, room + more), room)) == whole


def test_too_few_documents_are_a_fault_and_no_short_batch():
    assert list(cut([[1, 2, 3]], 0)) == []
    with pytest.raises(AssertionError, match="2 targets too few"):
        list(cut([[1, 2, 3]], 4))


def test_every_step_is_as_without_processes(packing, ahead):
    """Steps one after another, some of another size, back to an earlier one, and far ahead."""
    for step, room in (
        (0, 300),
        (1, 299),
        (2, 301),
        (3, 300),
        (4, 900),
        (5, 2),
        (1, 300),
        (77, 300),
    ):
        assert lists(ahead.take(step, room)) == packing.take(step, room), (step, room)
    assert ahead.take(78, 0) == []


def process_of(ahead):
    """The id of its only process, which waits for a question."""
    for _, later in list(ahead._coming.values()):
        later.result()
    worker = ahead._idle.get()
    ahead._idle.put(worker)
    return worker._process.pid


def has_ended(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_batches_are_the_same_to_the_bit_and_closing_ends_the_processes(packing):
    streams = [ProceduralStream(packing, processes) for processes in (0, 1)]
    plain, ahead = (Mixture([(stream, 1.0)], 300) for stream in streams)
    for step in range(3):
        one, other = plain.batch(step), ahead.batch(step)
        assert one.lengths == other.lengths and one.counted_N is other.counted_N is None
        for name in ("ids_N", "targets_N"):
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == b.dtype == np.int32 and a.tobytes() == b.tobytes()
    pid = process_of(streams[1]._ahead)
    ahead.close()
    assert has_ended(pid)


def test_a_process_that_is_killed_while_it_works_is_an_error_and_no_hang(packing):
    with contextlib.closing(Ahead(packing, 1)) as ahead:
        ahead.take(0, 300)
        pid = process_of(ahead)
        os.kill(pid, signal.SIGSTOP)  # it takes the next question, and answers no more
        asked = ahead._pool.submit(ahead._made, 50, 300)
        time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"got the worker ended: .*, at step 50") as caught:
            asked.result(timeout=20)
        assert caught.value.at == "pretrain.prefetch_processes" and "--resume" in caught.value.hint
        assert lists(ahead.take(40, 300)) == packing.take(40, 300)  # by a new one


def test_an_error_of_the_process_is_raised_where_its_step_is_asked_for(packing, ahead):
    with pytest.raises(UserError, match=r"got TypeError: .*, at step 5"):
        ahead._made(5, 1.5)
    assert lists(ahead.take(6, 300)) == packing.take(6, 300)


PROGRAM = """
import os, signal, sys
from nalar.data.ahead import Ahead
from nalar.data.config import CorpusConfig, PackingConfig, TokenizerConfig
from nalar.data.packing import Packing
from nalar.data.tokenizer import Tokenizer

tokenizer = Tokenizer.train(["3+4-5+6"] * 4, TokenizerConfig(vocab_size=262))
packing = Packing(tokenizer, CorpusConfig(), PackingConfig(step_tokens=300, document_tokens=40), 3)
ahead = Ahead(packing, 1)
ahead.take(0, 300)
assert "torch" not in sys.modules
worker = ahead._idle.get()
print(worker._process.pid, flush=True)
signal.pause()
"""


def test_the_processes_of_a_program_that_is_killed_end_with_it():
    command, env = [sys.executable, "-c", PROGRAM], {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as program:
        pid = int(program.stdout.readline())
        program.kill()
    assert has_ended(pid)
