import json

import pytest

from nalar.config import UserError
from nalar.model.weights import load_model, save_model


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("config.json", lambda data: data[: len(data) // 2]),
        ("config.json", lambda data: b"[]"),
        ("config.json", lambda data: b"\xff\xfe"),
        ("config.json", lambda data: _with(data, model_type="llama")),
        ("config.json", lambda data: _with(data, hidden_size="wide")),
        ("config.json", lambda data: _with(data, hidden_size=-4)),
        ("config.json", lambda data: _with(data, num_hidden_layers=9)),
        ("model.safetensors", lambda data: b""),
        ("model.safetensors", lambda data: data[:100]),
    ],
)
def test_a_damaged_model_folder_is_bad_input(file, damage, tiny_model, tmp_path):
    save_model(tiny_model, tmp_path, token_ids={})
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError):
        load_model(tmp_path)


def _with(data: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(data) | changes).encode()
