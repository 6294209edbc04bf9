"""Documents of the procedural corpus, made ahead of time in processes: pure Python that a GPU would wait for."""

import base64
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from nalar.config import UserError
from nalar.data.packing import Packing, cut
from nalar.sandbox.worker import Worker, WorkerError

IdsT = npt.NDArray[np.int32]

DEEP = 2
"""Steps that are made or wait, for each process."""
SLACK = 64
"""Targets made beyond what this step took: shares of a mixture differ by a few from step to step."""
START_S, TARGET_S = 120.0, 5e-4
"""How long a process may take to start, and for a step on top of that, by its targets: 25 times what it needs."""


class Ahead:
    """What `Packing.take` gives, to the bit, whoever made it: documents depend on seed and step alone.

    Asked for a step, it has the next ones made too. The processes start with the first question and end with `close`,
    or with the program, however that ends. One that ends in the midst of a step is an error where that is asked for.
    """

    def __init__(self, packing: Packing, processes: int) -> None:
        self._packing = packing
        self._deep = DEEP * processes
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        # An id is 4 bytes, in base64 5.4; a document has one more than it has targets, which are at least one.
        most = 12 * (packing.config.step_tokens + SLACK) * 2 + 2**16
        for _ in range(processes):
            self._idle.put(
                Worker(
                    "nalar.data.ahead_worker",
                    memory_bytes=None,
                    start_s=START_S,
                    max_reply_bytes=most,
                )
            )
        self._pool = ThreadPoolExecutor(processes, thread_name_prefix="ahead")
        self._coming: dict[int, tuple[int, Future[list[IdsT]]]] = {}
        """By step: the targets asked for, and their documents."""

    def take(self, step: int, room: int) -> list[IdsT]:
        """As many of a step's documents as have `room` targets in all, the last one cut to fit."""
        steps = range(step, step + self._deep + 1)
        self._coming = {
            later: asked
            for later, asked in self._coming.items()
            if later in steps and asked[0] >= room
        }
        for later in steps:
            if later not in self._coming:
                most = room + SLACK
                self._coming[later] = most, self._pool.submit(self._made, later, most)
        _, made = self._coming.pop(step)
        return list(cut(made.result(), room))

    def close(self) -> None:
        """End the processes. Waits for steps that are being made, not for those that are yet to be."""
        self._pool.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()

    def _made(self, step: int, room: int) -> list[IdsT]:
        """In a thread, which waits for a process."""
        worker = self._idle.get()
        try:
            reply = self._asked(worker, {"step": step, "room": room})
            if reply.get("wants_settings"):  # it is new
                reply = self._asked(worker, {"step": step, "room": room, **self._settings})
        finally:
            self._idle.put(worker)
        if "error" in reply:
            raise _failed(f"{reply['error']}, at step {step}")
        ids = np.frombuffer(base64.b64decode(reply["ids"]), dtype="<i4").astype(np.int32)
        return np.split(ids, np.cumsum(reply["lengths"])[:-1])

    def _asked(self, worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
        timeout_s = START_S + TARGET_S * request["room"]
        try:
            reply: dict[str, Any] = worker.ask(request, timeout_s=timeout_s)
        except WorkerError as error:
            raise _failed(f"{error}, at step {request['step']}") from None
        return reply

    @property
    def _settings(self) -> dict[str, Any]:
        packing = self._packing
        return {
            "corpus": packing.corpus.model_dump(mode="json"),
            "packing": packing.config.model_dump(mode="json"),
            "seed": packing.seed,
            "tokenizer": packing.tokenizer.to_json(),
        }


def _failed(got: str) -> UserError:
    return UserError(
        at="pretrain.prefetch_processes",
        got=got,
        want="processes that make batches while a step is trained",
        hint="--resume goes on from the last checkpoint; with 0 no process is needed, and batches are the same",
    )
