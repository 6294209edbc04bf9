import errno
import json
import os
import resource

import pytest
import torch

from nalar.config import UserError
from nalar.model import shards as shards_module
from nalar.train import checkpoint as checkpoint_module
from nalar.train.checkpoint import (
    MANIFEST,
    Progress,
    damage,
    load_checkpoint,
    load_optimizer,
    save_checkpoint,
    take_snapshot,
)
from nalar.train.step import pretrain_step

IDS = {"eos_token_id": 1}


def progress(step):
    return Progress(stage="pretrain", step=step, is_kept=True, logs={"metrics.jsonl": 5})


def plain_tokenizer(path):
    (path / "tokenizer.json").write_text("{}")


def save(folder, model, optimizer, step, *, save_tokenizer=plain_tokenizer, copy=True):
    snapshot = take_snapshot(model, optimizer, progress(step), copy=copy)
    save_checkpoint(folder, snapshot, token_ids=IDS, save_tokenizer=save_tokenizer)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", ["muonclip", "adamw"])
def test_model_and_optimizer_come_back_to_the_bit(
    model, make_optimizer, batch, tmp_path, name, copy
):
    optimizer = make_optimizer(model, name=name)
    for _ in range(3):
        pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    save(tmp_path / "a", model, optimizer, 3, copy=copy)
    back = load_checkpoint(tmp_path / "a")
    assert back.progress == progress(3)
    assert back.model.config == model.config
    own, loaded = model.state_dict(), back.model.state_dict()
    assert own.keys() == loaded.keys()
    assert all(torch.equal(own[name], loaded[name]) for name in own)
    assert any("correction_bias" in name and tensor.any() for name, tensor in loaded.items())
    again = make_optimizer(back.model, name=name)
    load_optimizer(tmp_path / "a", again)
    state, loaded_state = optimizer.state_tensors(), again.state_tensors()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[key], loaded_state[key]) for key in state)
    assert again.steps == 3


def test_what_a_loop_remembers_comes_back_and_is_covered(model, tmp_path):
    assert take_and_load(model, tmp_path / "none", None) is None
    remembered = {"unfinished": [{"logprobs": [-0.1, -1 / 3]}]}
    assert take_and_load(model, tmp_path / "some", remembered) == remembered
    path = tmp_path / "some" / "state" / "loop.json"
    path.write_bytes(path.read_bytes()[:-3])
    assert "state/loop.json" in damage(tmp_path / "some")
    with pytest.raises(UserError, match=r"no state of the loop that can be read"):
        load_checkpoint(tmp_path / "some")


def take_and_load(model, folder, loop):
    snapshot = take_snapshot(model, None, progress(3), loop=loop)
    save_checkpoint(folder, snapshot, token_ids=IDS, save_tokenizer=plain_tokenizer)
    return load_checkpoint(folder).loop


def test_training_goes_on_while_a_snapshot_is_written(model, make_optimizer, batch, tmp_path):
    """What is written is what was there when the snapshot was taken."""
    optimizer = make_optimizer(model)
    pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    save(tmp_path / "then", model, optimizer, 1)
    snapshot = take_snapshot(model, optimizer, progress(1))
    pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    save_checkpoint(tmp_path / "now", snapshot, token_ids=IDS, save_tokenizer=plain_tokenizer)
    assert contents(tmp_path / "now") == contents(tmp_path / "then")


def test_saving_changes_nothing_in_memory(model, make_optimizer, batch, tmp_path):
    optimizer = make_optimizer(model)
    pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = optimizer.state_tensors()
    save(tmp_path / "a", model, optimizer, 1)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, state[k]) for k, t in optimizer.state_tensors().items())
    assert all(p.requires_grad for p in model.parameters())


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["weights", "tokenizer", "optimizer"])
def test_a_disk_that_fills_up_leaves_the_checkpoint_before(
    model, make_optimizer, batch, tmp_path, monkeypatch, where
):
    optimizer = make_optimizer(model)
    folder = tmp_path / "checkpoints" / "latest"
    save(folder, model, optimizer, 1)
    before = contents(folder)
    pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    if where == "weights":
        monkeypatch.setattr(shards_module, "save_file", full)
    elif where == "optimizer":
        monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(UserError, match="a full disk"):
        save(
            folder,
            model,
            optimizer,
            2,
            save_tokenizer=full if where == "tokenizer" else plain_tokenizer,
        )
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["latest"]
    assert load_checkpoint(folder).progress == progress(1)


def test_a_limit_that_the_system_itself_sets_is_a_full_disk_too(
    model, make_optimizer, batch, tmp_path
):
    """No stand-in: files beyond 16 KiB cannot be written, which the library that writes weights finds out."""
    optimizer = make_optimizer(model)
    folder = tmp_path / "latest"
    save(folder, model, optimizer, 1)
    before = contents(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
    try:
        with pytest.raises(UserError, match="a full disk"):
            save(folder, model, optimizer, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


def test_the_manifest_covers_every_file(model, make_optimizer, tmp_path):
    save(tmp_path / "a", model, make_optimizer(model), 1)
    files = json.loads((tmp_path / "a" / MANIFEST).read_text())["files"]
    assert {*files, MANIFEST} == {str(name) for name in contents(tmp_path / "a")}
    assert damage(tmp_path / "a") is None
    (tmp_path / "a" / "README.md").write_text("mine")  # a file of the user's is no damage
    assert damage(tmp_path / "a") is None


@pytest.mark.parametrize("name", ["model.safetensors", "state/progress.json", MANIFEST])
def test_any_damage_to_any_file_is_seen_and_named(model, make_optimizer, tmp_path, name):
    folder = tmp_path / "a"
    save(folder, model, make_optimizer(model), 1)
    path, whole = folder / name, (folder / name).read_bytes()
    middle = len(whole) // 2
    for data in (whole[:-2], whole[:middle], b"", whole + b"x"):
        path.write_bytes(data)
        assert name in (damage(folder) or "")
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert damage(folder) is not None
    path.unlink()
    assert damage(folder) == f"{name} is missing"
    path.write_bytes(whole)
    assert damage(folder) is None


@pytest.mark.parametrize(
    "files", [{}, 5, {"/dev/zero": {"bytes": 0, "sha256": ""}}, {"../b": {}}, {"config.json": 1}]
)
def test_a_manifest_that_nalar_did_not_write_is_damage(model, tmp_path, files):
    save(tmp_path / "a", model, None, 1)
    (tmp_path / "a" / MANIFEST).write_text(json.dumps({"files": files}))
    assert damage(tmp_path / "a") is not None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("progress.json", None),
        ("progress.json", "{"),
        ("progress.json", '{"stage": "rl", "step": 1}'),
        ("progress.json", '{"stage": "rl", "step": "x", "logs": {}}'),
        ("random.json", None),
        ("random.json", "[]"),
    ],
)
def test_a_folder_without_training_state_is_no_checkpoint(model, tmp_path, name, text):
    save(tmp_path / "a", model, None, 1)
    path = tmp_path / "a" / "state" / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    gone = "no training state" if name == "progress.json" else "no random state"
    words = "as nalar wrote it" if text is not None else gone
    with pytest.raises(UserError, match=words):
        load_checkpoint(tmp_path / "a")


def test_the_state_of_another_optimizer_is_refused(model, make_optimizer, batch, tmp_path):
    optimizer = make_optimizer(model)
    pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    save(tmp_path / "a", model, optimizer, 1)
    other = make_optimizer(model, name="adamw")
    before = other.state_tensors()
    with pytest.raises(UserError, match="optimizer state"):
        load_optimizer(tmp_path / "a", other)
    assert all(torch.equal(t, before[k]) for k, t in other.state_tensors().items())
