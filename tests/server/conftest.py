"""A model that has learned nothing, as a folder; and an engine that says what a test tells it to."""

import asyncio
import threading
import time

import httpx
import pytest
import torch

from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import EngineConfig
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model
from nalar.server.config import GrammarConfig, ServerConfig, WorkerConfig
from nalar.server.engine.link import Link, Unavailable
from nalar.server.engine.messages import IDLE, EngineFacts, Event
from nalar.server.http.address import listen, url_of
from nalar.server.http.app import create_app
from nalar.server.http.listening import server_of

CONTEXT = 512


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One that knows tools."""
    return Tokenizer.train(
        ['say 12 is 34 ab 5+6-7 89 {"city": "Oslo"}'] * 4,
        TokenizerConfig(vocab_size=270, tools=True),
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    """Weights that nobody trained: what it says is noise, and grammars hold all the same."""
    model = Transformer(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.1,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=16,
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
        )
    )
    model.initialize(0)
    folder = tmp_path_factory.mktemp("tiny")
    save_model(model, folder, token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def worker_config(model_folder) -> WorkerConfig:
    engine = EngineConfig(max_model_len=CONTEXT, max_num_seqs=16)
    return WorkerConfig(
        folder=model_folder,
        threads=1,
        engine=engine,
        grammar=GrammarConfig(compile_s=0.5),
        weight_version="tiny-0",
    )


@pytest.fixture(scope="session")
def server_config(worker_config) -> ServerConfig:
    return ServerConfig(port=0, served_model_names=("tiny", "alias"), worker=worker_config)


class ScriptedLink:
    """Stands for the engine: answers the k-th request by `scripts[k]`, the last one for all that follow.

    A script is a list of token ids a choice, or a function of the request that gives such a list, or an exception.
    """

    def __init__(self, scripts, *, step=1, pause_s=0.0):
        self.scripts, self.step, self.pause_s = list(scripts), step, pause_s
        self.requests, self.aborted, self.state = [], [], "ready"
        self.facts = EngineFacts(max_model_len=CONTEXT, weight_version="tiny-0")

    async def ready(self):
        return self.facts

    def check(self):
        if self.state != "ready":
            raise Unavailable(f"the engine is {self.state}", 7.2)

    async def stats(self):
        return IDLE

    async def close(self):
        self.state = "stopped"

    async def stream(self, request, unread=None):
        number = len(self.requests)
        self.requests.append(request)
        script = self.scripts[min(number, len(self.scripts) - 1)]
        choices = script(request) if callable(script) else script
        if isinstance(choices, Exception):
            raise choices
        if choices and isinstance(choices[0], int):
            choices = [choices] * request.params.n
        done = False
        try:
            for choice, ids in enumerate(choices):
                cap = request.params.max_tokens
                ends = len(ids) <= cap and ids[-1] in request.params.stop_token_ids
                ids = ids[:cap]
                for at in range(0, len(ids), self.step):
                    if self.pause_s:
                        await asyncio.sleep(self.pause_s)
                    new = tuple(ids[at : at + self.step])
                    is_last = at + self.step >= len(ids)
                    asked = request.params.logprobs
                    top = () if asked is None else (tuple(((i, -0.5),) for i in new))
                    done = is_last and choice == len(choices) - 1
                    yield Event(
                        choice,
                        new,
                        (-0.5,) * len(new),
                        top,
                        finish_reason=("stop" if ends else "length") if is_last else None,
                        num_cached=3,
                    )
        finally:
            if not done:
                self.aborted.append(number)


@pytest.fixture
def scripted():
    return ScriptedLink


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def server(server_config):
    """On a socket, with an engine in a process of its own, for all tests that only ask it something. Gives its URL."""
    listening = listen("127.0.0.1", 0)
    link = Link(server_config.worker)
    server = server_of(create_app(server_config, link), server_config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 120
    while link.state == "loading" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert link.state == "ready"
    yield url_of(listening)
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def make_client(server_config):
    """An HTTP client of an app in this process. ASGI's transport gives a reply once it is whole."""

    def make(engine, **changes):
        app = create_app(server_config.model_copy(update=changes), engine)
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        client.app = app
        return client

    return make
