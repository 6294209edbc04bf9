import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import nalar
from nalar.config import UserError
from nalar.sandbox.worker import Worker, WorkerError

PACKAGES = os.pathsep.join([str(Path(nalar.__file__).parents[1]), *filter(None, sys.path)])
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


def test_a_worker_outlives_the_thread_that_was_the_first_to_ask(worker):
    pids = []
    for _ in range(2):
        asking = threading.Thread(
            target=lambda: pids.append(worker.ask({"do": "pid"}, timeout_s=10))
        )
        asking.start()
        asking.join()
        time.sleep(0.2)
    assert pids[0] == pids[1]


def test_a_worker_started_by_the_first_process_of_a_container_lives(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PACKAGES)
    text = "import os; os.getppid = lambda: 1; from nalar.sandbox import serve; serve.die_with_parent(); print(7)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, check=False)
    assert done.stdout == b"7\n"


def test_a_worker_ends_with_the_process_that_started_it(worker, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{PACKAGES}{os.pathsep}{tmp_path}")
    text = (
        "import sys; from nalar.sandbox.worker import Worker\n"
        "asked = Worker('asked_things', memory_bytes=None)\n"
        "print(asked.ask({'do': 'pid'}, timeout_s=10), flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    command = Path(f"/proc/{int(parent.stdout.readline())}/cmdline")
    assert b"asked_things" in command.read_bytes()
    parent.kill()
    parent.communicate()
    time.sleep(0.3)
    assert not command.exists() or not command.read_bytes(), "gone, or gone and not yet buried"


def test_a_worker_knows_no_secrets_of_its_parent(worker):
    assert "SECRET_TOKEN" not in worker.ask({"do": "env"}, timeout_s=10)


def test_what_a_worker_lacks_is_told_as_bad_input(tmp_path, monkeypatch, worker):
    refusing = Worker("asked_things", "refuse", memory_bytes=None)
    with pytest.raises(UserError, match="nothing") as caught:
        refusing.ask({"do": "echo"}, timeout_s=10)
    assert caught.value.hint == "try it"
    with pytest.raises(WorkerError, match="ended"):
        Worker("no_such_module", memory_bytes=None).ask({}, timeout_s=10)
