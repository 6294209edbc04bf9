import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nalar.config import UserError
from nalar.model.shards import INDEX, SINGLE, open_shard, stored_tensors, weight_files, write_shards

SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 8), "b": (8,), "c": (2, 3, 5), "d": (1,)}
    return {key: torch.randn(shape, generator=gen) for key, shape in shapes.items()}


@pytest.fixture
def sharded(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """a (128 bytes) alone, b and c (152), d (4) in a third file."""
    write_shards(tmp_path, [*tensors.items()], max_shard_bytes=152)
    return tmp_path


def index_of(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text())


def change_index(folder: Path, **entries: object) -> None:
    index = index_of(folder)
    index["weight_map"] |= entries
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_hold_what_the_limit_lets_and_the_index_names_them(sharded, tensors):
    index = index_of(sharded)
    assert index["weight_map"] == {
        "a": SHARDS[0],
        "b": SHARDS[1],
        "c": SHARDS[1],
        "d": SHARDS[2],
    }
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert sorted(p.name for p in sharded.iterdir()) == [*SHARDS, INDEX]
    for key, found in stored_tensors(sharded).items():
        assert (found.path.name, found.shape) == (index["weight_map"][key], tensors[key].shape)
        with open_shard(found.path) as shard:
            assert torch.equal(shard.get_tensor(key), tensors[key])


def test_one_shard_has_no_index(tensors, tmp_path):
    write_shards(tmp_path, [*tensors.items()], max_shard_bytes=10_000)
    assert [p.name for p in tmp_path.iterdir()] == [SINGLE] == weight_files(tmp_path)
    assert load_file(tmp_path / SINGLE).keys() == tensors.keys() == stored_tensors(tmp_path).keys()


def test_two_keys_of_one_memory_are_both_written(tmp_path):
    stack = torch.arange(12.0).reshape(2, 2, 3)
    write_shards(
        tmp_path, [("x", stack[0]), ("y", stack[1]), ("again", stack[0])], max_shard_bytes=10_000
    )
    back = load_file(tmp_path / SINGLE)
    assert torch.equal(back["x"], stack[0]) and torch.equal(back["again"], stack[0])
    assert torch.equal(back["y"], stack[1])


def test_weights_of_another_model_are_not_mixed_with_ours(sharded, tensors):
    with pytest.raises(UserError, match=rf"{SHARDS[0]} of other weights"):
        write_shards(sharded, [*tensors.items()], max_shard_bytes=10_000)
    write_shards(sharded, [*tensors.items()], max_shard_bytes=152)


def cut(folder: Path) -> None:
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(folder: Path) -> None:
    with (folder / SHARDS[1]).open("ab") as file:
        file.write(b"more")


def corrupt_header(folder: Path) -> None:
    data = bytearray((folder / SHARDS[1]).read_bytes())
    data[9:12] = b"\xff\xff\xff"
    (folder / SHARDS[1]).write_bytes(bytes(data))


def huge_header(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes(b"\xff" * 8 + b"{}")


def empty(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes(b"")


def pickled(folder: Path) -> None:
    torch.save({"b": torch.zeros(8)}, folder / SHARDS[1])


def plain_pickle(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes(pickle.dumps({"b": [0.0] * 8}))


def pointer(folder: Path) -> None:
    (folder / SHARDS[1]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def a_folder(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[1]).mkdir()


def absent(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()


def twice(folder: Path) -> None:
    save_file({"d": torch.zeros(1), "a": torch.zeros(4, 8)}, folder / SHARDS[2])


def beyond_index(folder: Path) -> None:
    save_file({"d": torch.zeros(1), "e": torch.zeros(1)}, folder / SHARDS[2])


def single_beside_index(folder: Path) -> None:
    save_file({"d": torch.zeros(1)}, folder / SINGLE)


def index_is_no_json(folder: Path) -> None:
    (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:40])


def index_is_a_list(folder: Path) -> None:
    (folder / INDEX).write_text("[]")


def index_without_map(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": ["a"]}')


@pytest.mark.parametrize(
    ("damage", "at", "got"),
    [
        (cut, SHARDS[1], "cut short or damaged"),
        (lengthen, SHARDS[1], "cut short or damaged"),
        (corrupt_header, SHARDS[1], "cut short or damaged"),
        (huge_header, SHARDS[1], "cut short or damaged"),
        (empty, SHARDS[1], "an empty file"),
        (pickled, SHARDS[1], "a pickle, which can run code"),
        (plain_pickle, SHARDS[1], "a pickle, which can run code"),
        (pointer, SHARDS[1], "a pointer of git-lfs"),
        (a_folder, INDEX, f"{SHARDS[1]}, which is not there"),
        (absent, INDEX, f"{SHARDS[1]}, which is not there"),
        (twice, SHARDS[2], f"a, which {SHARDS[0]} holds too"),
        (beyond_index, f"{SHARDS[2]}: e", "a tensor"),
        (single_beside_index, "", "model.safetensors beside an"),
        (index_is_no_json, INDEX, "not a JSON object"),
        (index_is_a_list, INDEX, "not a JSON object"),
        (index_without_map, INDEX, "no weight_map"),
        (lambda f: change_index(f, b=SHARDS[0]), f"{INDEX}: b", f"the file {SHARDS[1]}"),
        (lambda f: change_index(f, e=SHARDS[0]), f"{INDEX}: e", "no such key in any file"),
        (lambda f: change_index(f, b="../x.safetensors"), f"{INDEX}: b", "../x.safetensors"),
        (lambda f: change_index(f, b="/etc/x.safetensors"), f"{INDEX}: b", "/etc/x.safetensors"),
        (lambda f: change_index(f, b="..\\x.safetensors"), f"{INDEX}: b", "x.safetensors"),
        (lambda f: change_index(f, b=3), f"{INDEX}: b", "3"),
        (lambda f: change_index(f, b="model.bin"), f"{INDEX}: b", "model.bin"),
    ],
)
def test_a_damaged_set_of_shards_is_bad_input_that_says_where(damage, at, got, sharded):
    damage(sharded)
    with pytest.raises(UserError) as caught:
        stored_tensors(sharded)
    assert caught.value.at == str(sharded / at)
    assert got in caught.value.got


@pytest.mark.parametrize(
    ("file", "got"),
    [
        ("pytorch_model.bin", "pytorch_model.bin, a pickle, which can run code"),
        ("consolidated.00.pth", "consolidated.00.pth, a pickle"),
        ("model-Q4.gguf", "GGUF weights, which nalar does not read yet"),
        ("model-00001-of-00002.safetensors", f"safetensors files without {INDEX}"),
        ("readme.md", "no model.safetensors"),
    ],
)
def test_a_folder_without_safetensors_says_what_it_has(file, got, tmp_path):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        stored_tensors(tmp_path)
    assert caught.value.got.startswith(got)


def test_a_pickle_is_never_unpickled(sharded):
    ran = sharded / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (ran,)

    for name in (SHARDS[1], "pytorch_model.bin"):
        (sharded / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="a pickle"):
        stored_tensors(sharded)
    assert not ran.exists()
