"""Ctrl-C and SIGTERM: the first asks the run to finish its step and save, the second ends it at once."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class StopSignal:
    """Within the `with` block, a callable that says whether a stop was asked for. Main thread only."""

    def __init__(self, announce: Callable[[], None]) -> None:
        """announce: called from the signal handler on the first signal; must not take locks."""
        self._announce = announce
        self._earlier: dict[signal.Signals, Any] = {}
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._announce()
