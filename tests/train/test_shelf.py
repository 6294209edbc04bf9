import pytest

from nalar.config import UserError
from nalar.train.checkpoint import MANIFEST, Progress, save_checkpoint, take_snapshot
from nalar.train.shelf import Shelf


@pytest.fixture
def shelf(tmp_path, model):
    shelf = Shelf(tmp_path / "checkpoints")
    for step in (5, 10, 12, 15, 1_000_000):
        progress = Progress(stage="pretrain", step=step, is_kept=step == 10, logs={})
        snapshot = take_snapshot(model, None, progress, copy=False)
        save_checkpoint(
            shelf.place("pretrain", step), snapshot, token_ids={}, save_tokenizer=lambda _: None
        )
    return shelf


def names(shelf, stage="pretrain"):
    return [path.name for path in shelf.of(stage)]


def test_checkpoints_of_a_stage_are_found_in_order_of_steps_and_nothing_else_is(shelf):
    for name in ("rl-000001", "pretrain-x", ".pretrain-000020.tmp", "pretrain-000030.damaged"):
        (shelf.folder / name).mkdir()
    (shelf.folder / "pretrain-000040").write_text("a file")
    expected = ["pretrain-000005", "pretrain-000010", "pretrain-000012", "pretrain-000015"]
    assert names(shelf) == [*expected, "pretrain-1000000"]
    assert names(shelf, "rl") == ["rl-000001"]
    assert names(shelf, "sft") == []


def test_the_newest_whole_one_is_chosen_and_every_damaged_one_named(shelf):
    newest, before = shelf.place("pretrain", 1_000_000), shelf.place("pretrain", 15)
    assert shelf.newest("pretrain").folder == newest
    (newest / MANIFEST).unlink()
    with (before / "model.safetensors").open("ab") as file:
        file.write(b"x")
    found = shelf.newest("pretrain")
    assert found.folder == shelf.place("pretrain", 12)
    assert [*found.damaged] == [newest, before]
    assert found.damaged[newest] == f"{MANIFEST} is missing"
    assert "model.safetensors has" in found.damaged[before]
    assert shelf.newest("rl") is None


def test_where_none_is_whole_the_user_decides(shelf):
    for path in shelf.of("pretrain"):
        (path / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"pretrain-1000000: got a damaged .* \(and 4 before it\)"):
        shelf.newest("pretrain")


def test_a_damaged_one_is_kept_under_another_name(shelf):
    for _ in range(2):  # a second one replaces the first
        aside = shelf.set_aside(shelf.place("pretrain", 15))
        assert aside.name == "pretrain-000015.damaged" and aside.is_dir()
        assert "pretrain-000015" not in names(shelf)
        aside.rename(shelf.place("pretrain", 15))


def test_the_newest_and_the_marked_stay(shelf):
    shelf.retain("pretrain", keep=2, keep_marked=True)
    assert names(shelf) == ["pretrain-000010", "pretrain-000015", "pretrain-1000000"]
    shelf.retain("pretrain", keep=2, keep_marked=False)
    assert names(shelf) == ["pretrain-000015", "pretrain-1000000"]
    shelf.retain("rl", keep=1, keep_marked=False)
    assert len([*shelf.folder.iterdir()]) == 2


def test_one_that_cannot_say_whether_it_is_marked_stays(shelf):
    (shelf.place("pretrain", 5) / "state" / "progress.json").write_text("{")
    shelf.retain("pretrain", keep=1, keep_marked=True)
    assert names(shelf) == ["pretrain-000005", "pretrain-000010", "pretrain-1000000"]
