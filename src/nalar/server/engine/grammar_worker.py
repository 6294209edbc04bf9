"""The process in which grammars are compiled and followed, each in a child that ends when it costs too much.

llguidance can be held to no time: its own limits leave schemas of forty characters that compile for minutes, and steps
that never end. So nothing of it runs beside the model. Here a tokenizer's tables are made once; for each grammar a
child is forked, with a limit of memory and a timer that the kernel keeps, whatever the child is in the midst of.

Started by `grammar_link.py`, as `python -m nalar.server.engine.grammar_worker FD CONFIG`. What comes by the
socket are pairs of descriptors: a pipe to whoever asks, and a file with kind and text. To the pipe a child says BEGUN,
COMPILED (or an error), and then a mask (or an error) for each list of ids that comes. Imports no torch.
"""

import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from nalar.config import UserError
from nalar.data.grammar import Grammars, MakeGrammar, TokenGrammar
from nalar.model.folder import ModelFolder
from nalar.server.ask import GrammarSpec
from nalar.server.config import GrammarConfig, WorkerConfig
from nalar.server.dialects.dialect import Dialect
from nalar.server.engine.messages import error_json

BEGUN, COMPILED, ERROR, MASK = b"b", b"c", b"e", b"m"
"""First byte of what a child says. Then comes the sample; behind ERROR JSON, behind MASK one bit for each id."""
_DROP = 2**32 - 1
"""Instead of a sample: those that follow are done."""
_ERROR_CHARS = 2000
_SHORTEST_S = 1e-4
"""Of a timer; none is off."""

Compile = Callable[[GrammarSpec], MakeGrammar]


def ids_bytes(sample: int, ids: Sequence[int]) -> bytes:
    """What a child is asked: the mask behind `ids`, which follow those that it has of this sample."""
    return struct.pack(f"<{1 + len(ids)}I", sample, *ids)


def drop_bytes(samples: Sequence[int]) -> bytes:
    return ids_bytes(_DROP, samples)


def split(said: bytes) -> tuple[bytes, int, bytes]:
    """Of what a child said: kind, sample, and what is behind them."""
    return said[:1], int.from_bytes(said[1:5], "little"), said[5:]


class _Purse:
    """Seconds of a processor. Whoever spends more than is left is killed by the kernel."""

    def __init__(self, left_s: float) -> None:
        self.left_s = left_s

    @contextmanager
    def spending(self) -> Iterator[None]:
        began_s = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, max(self.left_s, _SHORTEST_S))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self.left_s -= time.process_time() - began_s


def _compiler(folder: Path, chat_template: Path | None) -> Compile:
    try:
        grammars = Grammars(Dialect.of(ModelFolder.read(folder, chat_template)).tokenizer)
    except UserError as error:  # llguidance is not installed
        return _refusing(error)

    def compiled(spec: GrammarSpec) -> MakeGrammar:
        if spec.kind == "json_schema":
            return grammars.json_schema(json.loads(spec.text))
        return grammars.regex(spec.text) if spec.kind == "regex" else grammars.lark(spec.text)

    return compiled


def _refusing(error: UserError) -> Compile:
    def refused(_spec: GrammarSpec) -> MakeGrammar:
        raise error

    return refused


def _follow(asker: Connection, spec: GrammarSpec, compiled: Compile, limits: GrammarConfig) -> None:
    """A child's whole life. EOFError once nobody asks any more."""
    asker.send_bytes(BEGUN)
    try:
        with _Purse(limits.compile_s).spending():
            make = compiled(spec)
    except Exception as error:
        asker.send_bytes(_said(0, error))
        return
    asker.send_bytes(COMPILED)
    samples = dict[int, TokenGrammar]()
    purse = _Purse(limits.burst_s)
    while True:
        data = asker.recv_bytes()
        sample, *ids = struct.unpack(f"<{len(data) // 4}I", data)
        if sample == _DROP:
            for one in ids:
                samples.pop(one, None)
            continue
        purse.left_s = min(purse.left_s + limits.mask_s, limits.burst_s)
        try:
            with purse.spending():
                if sample not in samples:
                    samples[sample] = make()
                for token_id in ids:
                    samples[sample].accept(token_id)
                reply = MASK + sample.to_bytes(4, "little") + samples[sample].allowed()
        except UserError as error:
            reply = _said(sample, error)
        asker.send_bytes(reply)


def _said(sample: int, error: Exception) -> bytes:
    """What a grammar cannot do, or a bug."""
    if isinstance(error, MemoryError):
        raise error
    fields = error_json(error)
    cut = {key: value and value[:_ERROR_CHARS] for key, value in fields.items()}
    return ERROR + sample.to_bytes(4, "little") + json.dumps(cut).encode()


def _limit(memory_mib: int) -> None:
    """Of this process: memory beside what it has. Where the machine runs short it is the first to go."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # as Linux has it
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        Path("/proc/self/oom_score_adj").write_text("1000")
    # What a library prints as it breaks may hold what was asked.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _child(fds: Sequence[int], compiled: Compile, limits: GrammarConfig) -> NoReturn:
    with suppress(BaseException):  # whoever asked sees how the pipe ends
        with os.fdopen(fds[1], encoding="utf-8") as file:
            spec = GrammarSpec(*json.load(file))
        _limit(limits.memory_mib)
        _follow(Connection(fds[0]), spec, compiled, limits)
    os._exit(0)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with whoever started it
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for children
    asked = socket.socket(fileno=int(sys.argv[1]))
    config = WorkerConfig.model_validate_json(sys.argv[2])
    compiled, limits = _compiler(config.folder, config.chat_template), config.grammar
    gc.collect()
    gc.freeze()  # or children would copy every page that they look at
    while True:
        _, fds, _, _ = socket.recv_fds(asked, 1, 2)
        if not fds:
            return 0
        try:
            if os.fork() == 0:
                asked.close()
                _child(fds, compiled, limits)
        except OSError:  # no processes left; whoever asked sees the pipe end
            traceback.print_exc()
        for fd in fds:
            os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
