"""Writes behind the training loop's back: one job at a time, and no failure is lost."""

import threading
from collections.abc import Callable


class Writer:
    """Does jobs in a thread of its own, or at once where it is not to work in the background.

    What a job raises is raised from the next call of `check`, `wait` or `do`, in the thread that calls.
    """

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def do(self, job: Callable[[], None]) -> None:
        """Start a job when the one before has ended."""
        self.wait()
        if not self.background:
            job()
            return
        # A daemon, so that a third Ctrl-C need not wait for a disk that hangs.
        self._thread = threading.Thread(target=self._run, args=(job,), name="writer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the last job raised, if it has. Does not wait."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Until nothing is being written; then `check`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._failure = error
