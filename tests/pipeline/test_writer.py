import threading

import pytest

from nalar.pipeline.writer import Writer


def test_jobs_run_one_at_a_time_and_in_order():
    writer, done, running = Writer(background=True), [], threading.Lock()

    def job(number):
        def run():
            assert running.acquire(blocking=False), "two at once"
            done.append(number)
            running.release()

        return run

    for number in range(20):
        writer.do(job(number))
    writer.wait()
    assert done == list(range(20))


def test_the_caller_goes_on_while_a_job_runs_and_waits_when_told_to():
    writer, may_end = Writer(background=True), threading.Event()
    done = []

    def job():
        may_end.wait(10)
        done.append(1)

    writer.do(job)
    assert writer.is_busy and not done
    may_end.set()
    writer.wait()
    assert not writer.is_busy and done


def broken():
    raise OSError("out of luck")


@pytest.mark.parametrize("ask", ["check", "wait", "do"])
def test_a_failure_is_raised_once_where_the_writer_is_asked_next(ask):
    writer = Writer(background=True)
    writer.do(broken)
    while writer.is_busy:
        pass
    with pytest.raises(OSError, match="out of luck"):
        getattr(writer, ask)(*([lambda: None] if ask == "do" else []))
    writer.wait()


def test_in_the_foreground_a_job_is_done_and_fails_at_once():
    writer, threads = Writer(background=False), []
    writer.do(lambda: threads.append(threading.current_thread()))
    assert threads == [threading.main_thread()]
    with pytest.raises(OSError, match="out of luck"):
        writer.do(broken)
