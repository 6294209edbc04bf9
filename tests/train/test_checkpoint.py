import errno
import os
import resource

import pytest
import torch

from nalar.config import UserError
from nalar.model import shards as shards_module
from nalar.train import checkpoint as checkpoint_module
from nalar.train.checkpoint import load_checkpoint, load_optimizer, save_checkpoint
from nalar.train.step import pretrain_step

IDS = {"eos_token_id": 1}


def save(folder, model, optimizer, step, *, save_tokenizer=None):
    def plain(path):
        (path / "tokenizer.json").write_text("{}")

    save_checkpoint(
        folder,
        model,
        optimizer,
        {"step": step},
        token_ids=IDS,
        save_tokenizer=save_tokenizer or plain,
    )


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["muonclip", "adamw"])
def test_model_and_optimizer_come_back_to_the_bit(model, make_optimizer, batch, tmp_path, name):
    optimizer = make_optimizer(model, name=name)
    for _ in range(3):
        pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    save(tmp_path / "a", model, optimizer, 3)
    back = load_checkpoint(tmp_path / "a")
    assert back.progress == {"step": 3}
    assert back.model.config == model.config
    own, loaded = model.state_dict(), back.model.state_dict()
    assert own.keys() == loaded.keys()
    assert all(torch.equal(own[name], loaded[name]) for name in own)
    again = make_optimizer(back.model, name=name)
    load_optimizer(tmp_path / "a", again)
    state, loaded_state = optimizer.state_tensors(), again.state_tensors()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[key], loaded_state[key]) for key in state)
    assert again.steps == 3


def test_saving_changes_nothing_in_memory(model, make_optimizer, batch, tmp_path):
    optimizer = make_optimizer(model)
    pretrain_step(model, optimizer, [batch], lr_factor=1.0, balance_speed=0.01)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = optimizer.state_tensors()
    save(tmp_path / "a", model, optimizer, 1)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, state[k]) for k, t in optimizer.state_tensors().items())


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
        save(folder, model, optimizer, 2, save_tokenizer=full if where == "tokenizer" else None)
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["latest"]
    assert load_checkpoint(folder).progress == {"step": 1}


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


def test_a_folder_without_training_state_is_no_checkpoint(model, tmp_path):
    save(tmp_path / "a", model, None, 1)
    (tmp_path / "a" / "state" / "progress.json").unlink()
    with pytest.raises(UserError, match="no training state"):
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
