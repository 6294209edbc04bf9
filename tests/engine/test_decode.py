"""Recorded steps, with a recorder as strict as a CUDA graph: it plays operations on the very tensors that they had."""

import logging
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from nalar.config import ConfigError
from nalar.engine import decode as decode_module
from nalar.engine.config import EngineConfig
from nalar.engine.engine import Engine
from nalar.engine.sequence import Request, SamplingParams
from nalar.kernels.grouped import NeedsHost, by_expert
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer

pytestmark = pytest.mark.few(2)

WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "bincount", "lift_fresh")
"""Operations for which a host waits for the device, or whose shapes the device knows alone."""

VOCAB_SIZE = 40
CONFIG = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}
ATTENTION = {
    "latent": {
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "grouped": {"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 8},
}


class Camera(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(x is not None and x.dtype == torch.bool for x in indices)
        if name in WAITS or by_mask:
            raise RuntimeError(f"{name}: a step that is recorded waits for nobody")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Film:
    """What a step does once is done again and again; what the host knew then stays as it was."""

    def __init__(self):
        self.takes = {}
        self.shown = 0

    def __contains__(self, key):
        return key in self.takes

    def record(self, key, step):
        # A CUDA graph is recorded without being run: so the last rehearsal is what is filmed.
        for _ in range(decode_module.REHEARSALS - 1):
            step()
        with Camera() as camera:
            step()
        self.takes[key] = camera.calls

    def replay(self, key):
        self.shown += 1
        for func, args, kwargs, out in self.takes[key]:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def films(monkeypatch):
    made = []

    def make():
        made.append(Film())
        return made[-1]

    monkeypatch.setattr(decode_module, "recorder_for", lambda device, config: make)
    return made


@pytest.fixture(params=ATTENTION)
def real_model(request):
    model = Transformer(ModelConfig(**CONFIG, **ATTENTION[request.param]))
    model.initialize(seed=3)
    return model


def wave(seed, count):
    """Requests of every kind that needs no say of the host."""
    rng = random.Random(seed)
    shapes = (
        {},
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_k": 5, "top_p": 0.8},
        {"repetition_penalty": 1.4, "frequency_penalty": 0.3},
        {"logprobs": 2},
    )
    for i in range(count):
        ids = tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 25)))
        kind = shapes[seed if seed < 3 else rng.randrange(len(shapes))]
        own = {"max_tokens": rng.randint(1, 14), "seed": seed * 100 + i, "n": 1 + i % 2}
        yield Request(ids, SamplingParams(**own, **kind))


WAVES = [list(wave(seed, count)) for seed, count in enumerate((3, 4, 3, 5, 5, 9))]


def said(engine):
    groups = [engine.generate(requests) for requests in WAVES]
    return [c for group in groups for samples in group for c in samples]


@pytest.mark.few(1)
@pytest.mark.parametrize("has_short_prompts", [False, True])
@pytest.mark.parametrize(
    "limits",
    [
        {"num_scheduler_steps": 1},
        {"num_scheduler_steps": 4, "block_size": 8},
        {"num_scheduler_steps": 3, "block_size": 4, "num_blocks": 24},
        {"num_scheduler_steps": 4, "deterministic": True},
    ],
)
def test_a_recorded_step_holds_nothing_that_the_host_changes(
    real_model, films, monkeypatch, limits, has_short_prompts
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_module, "recorder_for", lambda device, config: None)
        want = said(Engine(real_model, EngineConfig(max_model_len=48)))
    if has_short_prompts:  # recorded too where attention of a row is cheap, as by this word it is
        monkeypatch.setattr(
            decode_module, "reads_seen_blocks", lambda cache, width, is_latent: True
        )
    got = said(Engine(real_model, EngineConfig(max_model_len=48, max_num_seqs=8, **limits)))
    assert [c.token_ids for c in got] == [c.token_ids for c in want]
    for one, other in zip(got, want, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.processed_logprobs == pytest.approx(other.processed_logprobs, abs=1e-4)
    [film] = films
    assert film.shown > 2 * len(film.takes)
    are_there = any(key[0] == "tokens" for key in film.takes)
    assert are_there == (has_short_prompts and "deterministic" not in limits)


def test_experts_that_go_one_by_one_break_no_recording_off(monkeypatch):
    sizes = torch.tensor([1, 0, 2])
    rows, weights = torch.randn(3, 4), torch.randn(3, 5, 4)
    assert by_expert(rows, sizes, weights).shape == (3, 5)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(NeedsHost):
        by_expert(rows, sizes, weights)


def failing(error):
    def recorded(self, step):
        raise error

    return recorded


def test_a_step_that_asks_the_host_is_launched_as_it_is_and_that_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(decode_module.Graphs, "_recorded", failing(NeedsHost("as experts do")))
    graphs, done = decode_module.Graphs(), []
    with caplog.at_level(logging.WARNING):
        for key in ("one", "other"):
            graphs.record(key, lambda key=key: done.append(key))
            graphs.replay(key)
    assert done == ["one", "other"] and "one" in graphs
    assert caplog.text.count("as experts do") == 1


def test_what_else_breaks_a_recording_names_the_way_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(decode_module.Graphs, "_recorded", failing(torch.OutOfMemoryError("full")))
    with pytest.raises(ConfigError, match="enforce_eager=True"):
        decode_module.Graphs().record("a", lambda: None)
