"""One thread for every test: small tensors gain nothing by more, and idle threads that spin slow each other down."""

import contextlib
import functools
import json
import math
import os
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import hypothesis
import pytest

# Read when torch loads, so before any test imports it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# A kernel runs where a test forces it on, so that what it is compared with is the plain form on a GPU too.
os.environ.setdefault("NALAR_KERNELS_OFF", "all")
# Without it cuBLAS refuses to work where a test asks torch for deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Whom httpx trusts: nobody. Each client would load 150 authorities (0.1 s), and no test asks by TLS.
os.environ.setdefault("SSL_CERT_DIR", os.path.dirname(__file__))  # noqa: PTH120
if not os.path.exists("/dev/nvidia0"):  # noqa: PTH110 - nothing is imported yet
    # Read where a kernel is defined. The interpreter knows nothing of races, shared memory or speed.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config):
    """How many examples hypothesis tries where a test does not say: few in `make test`, many in `make test-all`."""
    for name, examples, steps in (("quick", 15, 25), ("all", 200, 40)):
        hypothesis.settings.register_profile(
            name, max_examples=examples, stateful_step_count=steps, deadline=None
        )
    is_quick = "not slow" in config.getoption("markexpr", "")
    hypothesis.settings.load_profile("quick" if is_quick else "all")


LONG_FILES = (
    "pipeline/test_r1_kills.py",
    "test_first_hour.py",
    "bench/test_ladder.py",
    "bench/test_kernels.py",
    "pipeline/test_exact_resume.py",
    "train/test_compiled.py",
    "kernels/gpu/test_hopper.py",
    "kernels/gpu/test_experts.py",
    "pipeline/test_r1_from_hf.py",
)
"""Begun first: a file is the work of one process, and one of these behind all others would run on alone for minutes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`few(n)`: where a test has many cases, `make test` runs the first n and `make test-all` all of them."""
    turns = {f"tests/{name}": turn for turn, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: turns.get(item.nodeid.partition("::")[0], len(turns)))
    seen = Counter()
    for item in items:
        mark = item.get_closest_marker("few")
        if mark is not None:
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > mark.args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def device():
    """Where tests of kernels have their tensors: on a GPU, if there is one; else Triton's interpreter runs them."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def short_ways():
    """Within this context a run leaves out what takes longer than a tiny run itself and has tests of its own.

    No more of a task is looked at before it than it takes to see that it is looked at, its baselines are measured on
    few problems, and pictures of reports are empty.
    """

    @contextlib.contextmanager
    def short_ways():
        from nalar.evals import baselines, plots
        from nalar.tasks import check

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(check, "CHECKED", 8)
            patch.setattr(check, "CHECKED_COSTLY", 4)
            overlap = functools.partial(check.refuse_overlap, at_most=40)
            patch.setattr(check, "refuse_overlap", overlap)
            patch.setattr(baselines, "TRAIN_PROBLEMS", 30)
            patch.setattr(baselines, "GUESSES", 30)
            patch.setattr(plots, "_svg", lambda name, draw: "<svg></svg>")
            yield

    return short_ways


def _probabilities(
    logits,
    *,
    bias=None,
    banned=(),
    allowed=None,
    said=(),
    prompt=(),
    repetition=1.0,
    presence=0.0,
    frequency=0.0,
    temperature=1.0,
    min_p=0.0,
    top_k=None,
    top_p=1.0,
):
    """Probabilities by plain Python, step by step in vLLM's order."""
    logits = [x + (bias or {}).get(i, 0.0) for i, x in enumerate(logits)]
    for i in range(len(logits)):
        if i in banned or (allowed is not None and i not in allowed):
            logits[i] = -math.inf
    for i in {*said, *prompt}:
        logits[i] = logits[i] / repetition if logits[i] > 0 else logits[i] * repetition
    for i in set(said):
        logits[i] -= frequency * list(said).count(i)
        logits[i] -= presence
    order = sorted(range(len(logits)), key=lambda i: -logits[i])  # stable: lower ids first
    if temperature == 0:
        return [float(i == order[0]) for i in range(len(logits))]
    logits = [x / temperature for x in logits]
    weights = [math.exp(x - max(logits)) for x in logits]
    kept = [i for i in order if weights[i] >= min_p * weights[order[0]]]
    kept = kept[:top_k]
    if top_p < 1:
        total, before, nucleus = sum(weights[i] for i in kept), 0.0, []
        for i in kept:
            if before < top_p * total:
                nucleus.append(i)
            before += weights[i]
        kept = nucleus
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@pytest.fixture
def reference() -> Callable[..., list[float]]:
    return _probabilities


class _ChatServer(ThreadingHTTPServer):
    """Answers each request by what `plan(body, nth)` gives: a text, or a status, headers and bytes to send (or
    what writes them)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, plan):
        self.plan, self.seen, self.busiest, self._now = plan, [], 0, 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((self.path, dict(self.headers), body))
            nth = len(server.seen)
            server._now += 1
            server.busiest = max(server.busiest, server._now)
        try:
            reply = server.plan(body, nth)
            status, headers, data = (200, {}, _chat(reply)) if isinstance(reply, str) else reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            data(self.wfile.write) if callable(data) else self.wfile.write(data)
        except OSError:
            pass  # whoever asked has left
        finally:
            with server.lock:
                server._now -= 1

    def log_message(self, *_):
        pass


def _chat(text):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


@pytest.fixture
def chat_server(monkeypatch):
    """Starts servers of the kind that OpenAI-style clients ask, on this machine, which do as they are told."""
    from nalar import endpoint

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_PAUSE_S", 0.05)
    servers = []

    def start(plan):
        servers.append(_ChatServer(plan))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
