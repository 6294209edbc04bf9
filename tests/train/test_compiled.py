"""Blocks as torch.compile makes them: the same training, to rounding, and to the bit where it stops and goes on."""

import shutil
import warnings

import pytest
import torch
from torch.testing import assert_close

from nalar.kernels.compiler import why_no_compiler
from nalar.model.compiled import CompiledBlocks
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.optim.config import OptimConfig
from nalar.train.checkpoint import Progress as Where
from nalar.train.checkpoint import load_checkpoint, load_optimizer, save_checkpoint, take_snapshot
from nalar.train.config import PretrainConfig
from nalar.train.pretrain import on_device, pretrain_slice
from nalar.train.step import pretrain_step

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)


@pytest.fixture
def programs() -> set[str]:
    """Counts what is compiled, from nothing."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters["stats"]


@pytest.fixture
def deep_config() -> ModelConfig:
    """All that a block can be: queries compressed, a depth of multi-token prediction."""
    return ModelConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        num_nextn_predict_layers=1,
        q_lora_rank=12,
        kv_lora_rank=12,
        qk_nope_head_dim=12,
        qk_rope_head_dim=4,
        v_head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.08,
    )


def train(model, optimizer, batches, steps, *, max_tokens=None, **settings):
    """The last gradients, and every step's metrics."""
    seen = []
    for step in range(steps):
        parts = [on_device(part, CPU) for part in batches.batch(step).split(max_tokens)]
        outcome = pretrain_step(
            model, optimizer, parts, lr_factor=1.0, balance_speed=0.01, **settings
        )
        seen.append(outcome.metrics())
    return {name: p.grad.clone() for name, p in model.named_parameters()}, seen


def assert_same_training(made, written):
    (gradients, metrics), (expected, expected_metrics) = made, written
    for name in expected:
        assert_close(gradients[name], expected[name], rtol=1e-3, atol=1e-5, msg=name)
    for one, other in zip(metrics, expected_metrics, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.layer_load_frac == other.layer_load_frac
        assert one.clipped_heads == other.clipped_heads


def recompiled(programs) -> str:
    """How many programs there are, and for each function whose program was not enough the guards that failed."""
    lines = [f"{programs['unique_graphs']} programs; torch {torch.__version__}, torch.cuda: "]
    lines[0] += str(torch.cuda.is_available())
    for code, reasons in torch._dynamo.utils.guard_failures.items():
        lines += [f"{code.co_name}, line {code.co_firstlineno}: {reason}" for reason in reasons]
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_a_block_becomes_one_program_for_all_batches(
    make_model, make_optimizer, batches, programs, recompute
):
    found = []
    for compiled in (CompiledBlocks("aot_eager" if recompute else "eager"), None):
        model = make_model()
        model.compiled, model.recompute = compiled, recompute
        optimizer = make_optimizer(model, qk_clip_tau=2.0)
        found.append(train(model, optimizer, batches, 3, max_tokens=45))
    assert_same_training(*found)
    # A dense block and one with experts, each for one length and then for all: of batches of 24, 42, 30 and more.
    assert programs["unique_graphs"] == 4, recompiled(programs)
    assert not torch._dynamo.utils.counters["graph_break"]


GROUPED = {
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_interleave": False,
    "kv_lora_rank": None,
    "q_lora_rank": None,
    "qk_nope_head_dim": None,
    "qk_rope_head_dim": None,
    "v_head_dim": None,
    "num_nextn_predict_layers": 0,
}


NARROW = {
    "v_head_dim": 8,
    "num_nextn_predict_layers": 0,
}  # no kernel of a CPU attends to such values


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, GROUPED, NARROW])
def test_every_extra_of_a_block_is_compiled_once(
    deep_config, make_optimizer, batches, programs, changes
):
    config = ModelConfig(**(deep_config.model_dump() | changes))
    extras = {
        "max_tokens": 45,
        "balance_loss_weight": 0.1,
        "mtp_loss_weight": 0.3 * config.num_nextn_predict_layers,
    }
    found = []
    for compiled in (CompiledBlocks("eager"), None):
        model = Transformer(config)
        model.initialize(0)
        model.compiled = compiled
        optimizer = make_optimizer(model)
        found.append(train(model, optimizer, batches, 2, **extras))
        if compiled:
            made = programs["unique_graphs"]
            train(model, optimizer, batches, 4, **extras)
            assert programs["unique_graphs"] == made > 0, recompiled(programs)
    assert_same_training(*found)


@needs_compiler
@pytest.mark.slow
def test_compiled_blocks_train_as_written_ones_and_stop_and_go_on_to_the_bit(
    make_model, make_optimizer, batches, tmp_path
):
    found = []
    for compiled in (CompiledBlocks(), None):
        model = make_model()
        model.compiled = compiled
        found.append(train(model, make_optimizer(model), batches, 1))
    assert_same_training(*found)
    config = PretrainConfig(
        slice_tokens=6 * 96, max_slices=1, compile=True, optim=OptimConfig(lr=0.01, adamw_lr=5e-3)
    )

    def run(model, optimizer, config, first_step, stop_at):
        seen = []
        pretrain_slice(
            model,
            optimizer,
            batches,
            config,
            first_step=first_step,
            on_step=lambda p: seen.append((p.step, p.outcome.metrics())),
            should_stop=lambda: bool(seen) and seen[-1][0] == stop_at,
        )
        return seen

    whole = make_model()
    expected = run(whole, make_optimizer(whole), config, 0, None)
    assert whole.compiled is not None
    written = make_model()
    assert written.state_dict().keys() == whole.state_dict().keys()
    plain = config.model_copy(update={"compile": False})
    for (_, one), (_, other) in zip(
        run(written, make_optimizer(written), plain, 0, None), expected, strict=True
    ):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    model = make_model()
    optimizer = make_optimizer(model)
    before = run(model, optimizer, config, 0, 3)
    snapshot = take_snapshot(model, optimizer, Where(stage="pretrain", step=3, logs={}))
    save_checkpoint(tmp_path / "c", snapshot, token_ids={}, save_tokenizer=lambda _: None)
    resumed = load_checkpoint(tmp_path / "c")
    again = make_optimizer(resumed.model)
    load_optimizer(tmp_path / "c", again)
    torch._dynamo.reset()  # as a new process does: it compiles anew
    after = run(resumed.model, again, config, 3, None)
    assert before + after == expected
    weights = whole.state_dict()
    assert all(torch.equal(t, weights[n]) for n, t in resumed.model.state_dict().items())


def test_without_a_compiler_training_goes_on_and_says_so_once(make_model, make_optimizer, batches):
    config = PretrainConfig(slice_tokens=96, max_slices=2, compile=True)
    model, seen = make_model(), []
    optimizer = make_optimizer(model)

    def slice_from(step):
        pretrain_slice(
            model,
            optimizer,
            batches,
            config,
            first_step=step,
            on_step=seen.append,
            should_stop=lambda: False,
        )

    torch._dynamo.reset()
    why_no_compiler.cache_clear()
    broken = {"cpp.cxx": ("no-such",), "force_disable_caches": True}
    with torch._inductor.config.patch(broken):
        with pytest.warns(UserWarning, match=r"cannot compile .*goes on without"):
            slice_from(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            slice_from(1)
    why_no_compiler.cache_clear()
    assert len(seen) == 2
