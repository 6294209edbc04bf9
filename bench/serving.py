"""The server under load on two cores: what HTTP costs, events a second, many connections, memory, clients that leave.

    PYTHONPATH=src python bench/serving.py --out bench/results/serving-two-cores.json

`nalar serve` as users start it, the engine on one thread, models of random weights, chats that are streamed.

offline   a model of the demo's kind, so large that its engine alone draws at most 2,000 tokens a second: 64 requests
          given to the engine in a process of its own, and the same requests (same seeds, so the same tokens) over 64
          connections; in turns. The peer of the streams is the engine alone.
events    events a second that 64 streams of a tiny model and of the demo's model get, by the wall and for each second
          of a core that the server took.
http      the same of a stand-in for the engine (standin.py), which costs next to nothing: in step with the server, so
          that every four tokens are an event; at 200 steps a second; at more than it can send.
connect   500 connections at once against a server that works on 64 and lets 128 wait.
memory    RSS of both processes at 2,000 and at 20,000 requests, with a ledger.
leave     of 64 streams every second one goes away with its first event.

`--only` names sections. Whatever else the machine does is in the figures: compare those of one run.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import nalar.config
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.recipes.zero import zero_cpu
from record import Row, record
from streams import Reply, ask, ask_all, ask_streams, get
from timing import section

STREAMS = 64
CONTEXT = 512
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
LARGE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10}
"""Of the demo's shape else: one core draws about 1,500 tokens a second from it."""
PACKAGES = Path(nalar.config.__file__).parents[1]


def make_folder(folder: Path, kind: str) -> None:
    """A model that nobody trained, with a tokenizer."""
    tokenizer = Tokenizer.train(["say 12 is 34 ab 5+6-7 89"] * 4, TokenizerConfig(vocab_size=270))
    changes: dict[str, Any] = {"tiny": TINY, "demo": {}, "large": LARGE}[kind]
    shape = zero_cpu().model.model_dump() | changes
    shape |= {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": CONTEXT}
    model = Transformer(ModelConfig.model_validate(shape))
    model.initialize(0)
    save_model(model, folder, token_ids=tokenizer.token_ids)
    tokenizer.save(folder)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[int, int, int]]:
    """Port, and the ids of the processes of server and engine."""
    command = [sys.executable, "-m", "nalar", "serve", str(folder), "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--threads", "1", "--log-level", "error", *flags],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"nalar serve ended with {process.wait()}")
            text += line
        said = json.loads(text)
        port = urlsplit(said["url"]).port
        assert port is not None
        try:
            yield port, process.pid, said["process_id"]
        finally:
            process.terminate()
            process.wait(60)


def chat(seed: int, tokens: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"say {seed} is 34 ab 5+6-7 89"}]
    body = {"messages": messages, "max_tokens": tokens, "seed": seed, "ignore_eos": True}
    return body | {"stream": True, "stream_options": {"include_usage": True}} | more


def streamed(port: int, tokens: int) -> tuple[list[Reply], float]:
    """Replies of `STREAMS` chats at once, and the seconds that all took."""
    bodies = [chat(seed, tokens) for seed in range(STREAMS)]
    began = time.perf_counter()
    replies = ask_streams(port, bodies)
    taken_s = time.perf_counter() - began
    assert all(reply.status == 200 and reply.is_complete for reply in replies)
    return replies, taken_s


def cpu_s(process_id: int) -> float:
    """Seconds of a core that all threads of a process have had."""
    threads = Path(f"/proc/{process_id}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def speeds(name: str, port: int, server_id: int, repeats: int, tokens: int) -> list[Row]:
    """Of 64 streams, medians of rounds behind one that does not count."""
    streamed(port, tokens)
    rounds: dict[str, list[float]] = {}
    for _ in range(repeats):
        before = cpu_s(server_id)
        replies, taken_s = streamed(port, tokens)
        core_s = cpu_s(server_id) - before
        events = sum(reply.num_events for reply in replies)
        drawn = sum(reply.num_tokens for reply in replies)
        for unit, value in (
            ("events/s", events / taken_s),
            ("events a core second of the server", events / core_s),
            ("tok/s", drawn / taken_s),
            ("tokens an event", drawn / events),
        ):
            rounds.setdefault(unit, []).append(value)
    what = f"{name}, {STREAMS} streams"
    return [Row(f"{what}: {unit}", median(values), unit) for unit, values in rounds.items()]


class Offline:
    """The engine alone, in a process of its own: says how long the same requests take it, and how many tokens."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "offline", str(folder), str(tokens)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run()

    def run(self) -> tuple[int, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        tokens, taken_s = json.loads(self._process.stdout.readline())
        return tokens, taken_s

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def offline(folder: Path, tokens: int) -> None:
    """Of the child: for each line on stdin, all requests at once, as the server would give them to its engine."""
    import torch

    from nalar.engine.config import EngineConfig
    from nalar.engine.engine import Engine
    from nalar.engine.sequence import Request
    from nalar.model.folder import ModelFolder
    from nalar.model.weights import load_model
    from nalar.server.answer import prepare
    from nalar.server.config import ServerConfig, WorkerConfig
    from nalar.server.dialects.dialect import Dialect
    from nalar.server.wire.chat import ChatRequest

    torch.set_num_threads(1)
    model = load_model(folder).eval().requires_grad_(False)
    settings = EngineConfig(max_model_len=CONTEXT, max_num_seqs=STREAMS, memory_frac=0.25)
    config = ServerConfig(
        served_model_names=("m",), worker=WorkerConfig(folder=folder, engine=settings)
    )
    engine, dialect = Engine(model, settings), Dialect.of(ModelFolder.read(folder))
    asks = [ChatRequest.of(chat(i, tokens)).ask(config, 0) for i in range(STREAMS)]
    prepared = [prepare(one, dialect, CONTEXT).request for one in asks]
    for _ in sys.stdin:
        requests = [Request(one.prompt_ids, one.params) for one in prepared]
        began = time.perf_counter()
        with torch.inference_mode():
            done = engine.generate(requests)
        taken_s = time.perf_counter() - began
        drawn = sum(len(sample.token_ids) for each in done for sample in each)
        print(json.dumps([drawn, taken_s]), flush=True)


def offline_rows(repeats: int, tokens: int) -> list[Row]:
    """In turns; a round that does not count comes first."""
    with tempfile.TemporaryDirectory() as place:
        make_folder(Path(place), "large")
        alone = Offline(Path(place), tokens)
        with serving(Path(place), "--max-num-seqs", str(STREAMS)) as (port, _, _):
            streamed(port, tokens)
            rates: dict[str, list[float]] = {"alone": [], "http": []}
            for _ in range(repeats):
                drawn, taken_s = alone.run()
                rates["alone"].append(drawn / taken_s)
                replies, taken_s = streamed(port, tokens)
                over_http = sum(reply.num_tokens for reply in replies)
                assert over_http == drawn, (over_http, drawn)
                rates["http"].append(over_http / taken_s)
                print({name: round(each[-1]) for name, each in rates.items()}, file=sys.stderr)
        alone.close()
    ratio = median(h / a for h, a in zip(rates["http"], rates["alone"], strict=True))
    peer = "the engine alone"
    return [
        Row(f"{STREAMS} streams", median(rates["http"]), "tok/s", peer, median(rates["alone"])),
        Row(f"{STREAMS} streams / engine alone, median of rounds", ratio, "x", peer, 1.0),
    ]


def event_rows(repeats: int, tokens: int) -> list[Row]:
    rows = []
    for kind in ("tiny", "demo"):
        with tempfile.TemporaryDirectory() as place:
            make_folder(Path(place), kind)
            with serving(Path(place), "--max-num-seqs", str(STREAMS)) as (port, server_id, _):
                rows += speeds(f"{kind} model", port, server_id, repeats, tokens)
    return rows


def http_rows(repeats: int, tokens: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        make_folder(Path(place), "tiny")
        for name, steps_per_s in (("in step", 0), ("200 steps/s", 200), ("1000 steps/s", 1000)):
            with standing_in(Path(place), steps_per_s) as (port, server_id):
                rows += speeds(f"no model, {name}", port, server_id, repeats, tokens)
    return rows


@contextmanager
def standing_in(folder: Path, steps_per_s: int) -> Iterator[tuple[int, int]]:
    """Port and process of a server whose engine draws nothing."""
    command = [sys.executable, str(Path(__file__).with_name("standin.py"))]
    command += ["serve", str(folder), str(steps_per_s)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield tuple(json.loads(process.stdout.readline()))
        finally:
            process.terminate()
            process.wait(60)


def connection_rows(connections: int) -> list[Row]:
    """None may hang; whoever is sent away is told when to come again."""
    with tempfile.TemporaryDirectory() as place:
        make_folder(Path(place), "demo")
        with serving(Path(place), "--max-running", "64", "--max-queued", "128") as (port, _, _):
            bodies = [chat(seed, 32) for seed in range(connections)]
            began = time.perf_counter()
            replies = asyncio.run(asyncio.wait_for(ask_all(port, bodies), 300))
            taken_s = time.perf_counter() - began
    answered = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    assert len(answered) + len(refused) == connections, {reply.status for reply in replies}
    assert all(reply.is_complete for reply in replies)
    assert all(reply.has_retry_after for reply in refused)
    return [
        Row(f"{connections} connections, answered", len(answered), "requests"),
        Row(f"{connections} connections, told to come again", len(refused), "requests"),
        Row(f"{connections} connections, until the last had its reply", taken_s, "s"),
    ]


def rss_bytes(process_id: int) -> int:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"process {process_id} is gone")


def memory_rows(early: int, late: int) -> list[Row]:
    """Short whole replies, prompts that differ, 32 connections at a time."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        folder.mkdir()
        make_folder(folder, "tiny")
        ledger = str(Path(place) / "ledger.db")
        with serving(folder, "--ledger", ledger, "--prices", "1", "0.5", "2") as (port, *processes):
            began, seen, done = time.perf_counter(), {}, 0
            for count in (early, late):
                bodies = [chat(seed, 2, stream=False) for seed in range(done, count)]
                for body in bodies:
                    del body["stream_options"]
                replies = asyncio.run(ask_all(port, bodies, at_once=32))
                assert all(reply.status == 200 and reply.is_complete for reply in replies)
                done, seen[count] = count, [rss_bytes(each) for each in processes]
            taken_s = time.perf_counter() - began
    rows = [Row("requests of two tokens, with a ledger", late / taken_s, "requests/s")]
    for i, name in enumerate(("server", "engine")):
        then, now = seen[early][i] / 2**20, seen[late][i] / 2**20
        what = f"RSS of the {name} after {late} requests"
        rows.append(Row(what, now, "MiB", f"after {early}", then))
    return rows


async def running(port: int) -> float:
    """Requests that engine and queue still have, as /metrics says."""
    lines = (await get(port, "/metrics")).splitlines()
    names = ("nalar:num_requests_running", "nalar:num_requests_waiting")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def leaving_rows(tokens: int) -> list[Row]:
    async def leaving(port: int, every: int) -> tuple[list[Reply], float]:
        """Of so many streams the last leaves: replies, and how long the server then works on."""
        leaves = [seed % every == every - 1 for seed in range(STREAMS)]
        replies = await asyncio.gather(
            *(ask(port, chat(seed, tokens), leave=left) for seed, left in enumerate(leaves))
        )
        began = time.perf_counter()
        while await running(port):
            await asyncio.sleep(0.01)
        return list(replies), time.perf_counter() - began

    with tempfile.TemporaryDirectory() as place:
        make_folder(Path(place), "demo")
        with serving(Path(place)) as (port, _, _):
            replies, rest_s = asyncio.run(asyncio.wait_for(leaving(port, 2), 300))
            _, all_s = asyncio.run(asyncio.wait_for(leaving(port, 1), 300))
    assert all(reply.is_complete for reply in replies[::2])
    return [
        Row("half of 64 clients leave: work left behind the last reply", rest_s, "s"),
        Row("all of 64 clients leave: work left behind the last", all_s, "s"),
    ]


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, nargs=2, default=(2_000, 20_000))
    parser.add_argument("--only", nargs="*", metavar="SECTION")
    asked = parser.parse_args(args)
    sections: dict[str, Callable[[], list[Row]]] = {
        "offline": lambda: offline_rows(asked.repeats, asked.tokens),
        "events": lambda: event_rows(asked.repeats, asked.tokens),
        "http": lambda: http_rows(asked.repeats, 8 * asked.tokens),
        "connect": lambda: connection_rows(500),
        "memory": lambda: memory_rows(*asked.requests),
        "leave": lambda: leaving_rows(asked.tokens),
    }
    rows: list[Row] = []
    for name, run in sections.items():
        if not asked.only or name in asked.only:
            with section(name):
                rows += run()
    record(asked.out, " ".join(["python", "bench/serving.py", *sys.argv[1:]]), rows)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["offline"]:
        offline(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(main())
