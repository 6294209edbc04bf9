import os
import signal
import textwrap
import time

import pytest

from nalar.config import UserError
from nalar.sandbox.worker import Worker, WorkerError

SERVER = """
import os, sys, time

from nalar.sandbox.serve import Refusal, serve

def prepare():
    if "refuse" in sys.argv:
        raise Refusal(at="here", got="nothing", want="something", hint="try it")
    print("a line of chatter")
    def answer(request):
        kind = request["do"]
        if kind == "hang":
            while True: pass
        if kind == "die": os._exit(7)
        if kind == "fail": raise ValueError("no")
        if kind == "eat": return {"size": len(bytearray(request["bytes"]))}
        if kind == "flood": return "x" * 10_000_000
        if kind == "pid": return os.getpid()
        if kind == "env": return sorted(os.environ)
        print("more chatter")
        return request
    return answer

if __name__ == "__main__":
    serve(prepare)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "asked_things.py").write_text(textwrap.dedent(SERVER))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SECRET_TOKEN", "x")
    made = Worker("asked_things", memory_bytes=2**30)
    yield made
    made.close()


def test_answers_come_back_and_chatter_does_not(worker):
    for request in ({"do": "echo", "text": "é\n" * 50_000}, {"do": "echo"}):
        assert worker.ask(request, timeout_s=10) == request


def test_an_exception_is_an_answer(worker):
    assert worker.ask({"do": "fail"}, timeout_s=10) == {"error": "ValueError: no"}
    assert worker.ask({"do": "eat", "bytes": 2**34}, timeout_s=10) == {"error": "MemoryError: "}


def test_a_process_that_hangs_is_killed_and_the_next_question_meets_a_new_one(worker):
    pid = worker.ask({"do": "pid"}, timeout_s=10)
    start = time.perf_counter()
    with pytest.raises(WorkerError) as caught:
        worker.ask({"do": "hang"}, timeout_s=0.3)
    assert caught.value.timed_out and time.perf_counter() - start < 3
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.ask({"do": "pid"}, timeout_s=10) != pid


def test_a_process_that_stops_reading_is_no_hang_either(worker):
    os.kill(worker.ask({"do": "pid"}, timeout_s=10), signal.SIGSTOP)
    with pytest.raises(WorkerError, match="within"):
        worker.ask({"do": "echo", "text": "x" * 10_000_000}, timeout_s=0.3)


@pytest.mark.parametrize(("do", "told"), [("die", "exit status 7"), ("flood", "more than")])
def test_a_process_that_ends_or_floods_is_an_error_that_says_so(worker, do, told):
    with pytest.raises(WorkerError, match=told) as caught:
        worker.ask({"do": do}, timeout_s=10)
    assert not caught.value.timed_out
    assert worker.ask({"do": "echo"}, timeout_s=10) == {"do": "echo"}


def test_a_worker_knows_no_secrets_of_its_parent(worker):
    assert "SECRET_TOKEN" not in worker.ask({"do": "env"}, timeout_s=10)


def test_what_a_worker_lacks_is_told_as_bad_input(tmp_path, monkeypatch, worker):
    refusing = Worker("asked_things", "refuse", memory_bytes=None)
    with pytest.raises(UserError, match="nothing") as caught:
        refusing.ask({"do": "echo"}, timeout_s=10)
    assert caught.value.hint == "try it"
    with pytest.raises(WorkerError, match="ended"):
        Worker("no_such_module", memory_bytes=None).ask({}, timeout_s=10)
