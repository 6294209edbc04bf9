import pytest
import torch
from safetensors.torch import load_file

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.model.weights import load_model
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.place import place_of, settled
from nalar.pipeline.sampler import load_sampler
from nalar.pipeline.zero import Outcome
from nalar.recipes.registry import RECIPES

pytestmark = pytest.mark.few(1)


@pytest.fixture(scope="module")
def rounded(shrunk: ZeroConfig) -> ZeroConfig:
    """In bfloat16, with saves within pretraining and RL."""
    document = shrunk.model_dump() | {"dtype": "bfloat16", "device": "auto"}
    document["pretrain"] |= {"save_every_steps": 6, "log_every_steps": 1}
    document["rl"] |= {"steps": 2, "save_every_steps": 1}
    document["evals"] |= {"tasks": ("chain_sum",)}
    return ZeroConfig.model_validate(document)


def on_gpu(config: ZeroConfig, **changes: str) -> ZeroConfig:
    return config.model_copy(update={"device": "cuda"} | changes)


def test_auto_is_a_gpu_where_there_is_one_and_else_the_cpu(rounded, monkeypatch):
    for has_gpu, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
        assert settled(rounded).device == device
        assert place_of(rounded) == place_of(settled(rounded))
        assert place_of(rounded).dtype == torch.bfloat16
        assert settled(rounded.model_copy(update={"device": "cpu"})).device == "cpu"


def test_a_gpu_that_is_not_there_is_refused_with_what_is(shrunk, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as error:
        settled(on_gpu(shrunk))
    assert error.value.at == "device" and "--device cpu" in error.value.hint
    assert error.value.got.startswith(f"'cuda', and torch {torch.__version__}, built for ")


def test_a_gpu_without_bfloat16_is_refused_for_it_alone(shrunk, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert settled(on_gpu(shrunk)).device == "cuda"
    with pytest.raises(UserError, match="dtype: got 'bfloat16' on Tesla T4"):
        settled(on_gpu(shrunk, dtype="bfloat16"))


def test_recipes_that_are_named_for_the_cpu_stay_there():
    named = [recipe() for name, recipe in RECIPES.items() if "h200" not in name]
    assert {config.device for config in named} == {"cpu"}


@pytest.fixture(scope="module")
def whole(rounded, make_work, tmp_path_factory):
    work = make_work(tmp_path_factory.mktemp("bf16"))
    run = work.create("run", rounded)
    assert work.go(run, until="rl") is Outcome.FINISHED
    return run


def test_a_run_in_bfloat16_learns_and_saves_what_it_computed_with(whole, shrunk, rounded):
    losses = [metric.values["loss"] for metric in whole.metrics("pretrain")]
    assert losses[0] == pytest.approx(5.58, abs=0.05)  # log 266: knows nothing
    assert losses[-1] < 0.4 * losses[0]
    folder = whole.path / "checkpoints" / "pretrain-000020"
    state = load_file(folder / "state" / "optimizer.safetensors")
    for name, tensor in load_model(folder, dtype=torch.bfloat16).named_parameters():
        master = state[f"master.{name}"]
        assert master.dtype == torch.float32 and not torch.equal(master, tensor.float())
        assert torch.equal(master.bfloat16(), tensor)
    stored = load_file(folder / "model.safetensors")
    biases = {key for key in stored if "correction_bias" in key}
    assert biases and {stored[key].dtype for key in stored.keys() - biases} == {torch.bfloat16}


def test_transformers_loads_what_was_trained_in_bfloat16(whole):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        whole.model_dir(), dtype="auto", experts_implementation="eager"
    )
    assert theirs.dtype == torch.bfloat16
    ours = load_model(whole.model_dir(), dtype=torch.bfloat16)
    text = "make 24 from 3 8, then 36 from 4 9, then 100 from 25 4, and 7 from 1 6"
    ids = torch.tensor([Tokenizer.load(whole.model_dir()).encode(text)])
    with torch.no_grad():
        expected, found = theirs(ids).logits.float(), ours.logits(ours(ids).states)
    # Where two experts are nearly even, rounding may send a token to the other one.
    is_close = ((found - expected).abs() <= 0.05 + 0.05 * expected.abs()).all(-1)
    assert float(is_close.float().mean()) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("at", [("pretrain", 14), ("rl", 2)])
def test_a_run_in_bfloat16_goes_on_to_the_bit(at, rounded, whole, work):
    """Masters are part of a checkpoint: without them going on would begin from rounded weights."""
    run = work.create("cut", rounded)
    work.interrupted(work.go, run, at)
    assert work.go(run, until="rl") is Outcome.FINISHED
    for name in ("pretrain-000020", "rl-000002"):
        for file in ("model.safetensors", "state/optimizer.safetensors"):
            path = f"checkpoints/{name}/{file}"
            assert (run.path / path).read_bytes() == (whole.path / path).read_bytes()


def test_a_run_is_sampled_from_in_its_own_numbers_and_elsewhere_on_the_cpu(
    whole, rounded, monkeypatch
):
    sampler = load_sampler(whole.model_dir(), rounded)
    assert sampler.engine._model.head_weight.dtype == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sampler = load_sampler(whole.model_dir(), on_gpu(rounded))
    assert sampler.engine._model.head_weight.device.type == "cpu"
