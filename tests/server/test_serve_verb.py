"""What the flags of `nalar serve` come to. That it serves: test_drain.py."""

import json
import os
import signal

import pytest

from nalar.cli import serve
from nalar.cli.main import main
from nalar.cli.serve import Serve, config_of
from nalar.config import UserError
from nalar.recipes.zero import zero_cpu
from nalar.server.http.listening import listen, url_of


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_flags_become_a_config(model_folder, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"input": "flag", "words": str(tmp_path / "words.txt")}))
    asked = Serve(model=str(model_folder), prices=(0.56, 0.14, 2.24), policy=policy, threads=1)
    config = config_of(asked)
    assert config.served_model_names == (model_folder.name,)
    assert config.worker.folder == model_folder and config.worker.engine.max_model_len == 512
    assert config.prices.cached_input_usd == 0.14 and config.policy.input == "flag"
    assert config.default_max_tokens is None  # no run says how long its answers are


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0"),
        ({"host": "0.0.0.0", "intended_use": "tests"}, "--host 0.0.0.0"),
        ({"port": 70_000}, "--port"),
        ({"max_num_seqs": 0}, "--max-num-seqs"),
        ({"prices": (-1.0, 0.0, 0.0)}, "--prices"),
        ({"max_model_len": 0}, "--max-model-len"),
        ({"threads": 0}, "--threads"),
        ({"max_tokens": 0}, "--max-tokens"),
        ({"allowed_origins": ("*",)}, "--allowed-origins"),
        ({"allowed_origins": ("https://a.example/chat",)}, "--allowed-origins"),
    ],
)
def test_what_cannot_work_is_refused(model_folder, changes, at):
    with pytest.raises(UserError) as error:
        config_of(Serve(model=str(model_folder), **changes))
    assert error.value.at == at


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_numbers_are_those_of_the_run_wherever_it_is_served(model_folder, monkeypatch, device):
    trained = zero_cpu().model_copy(update={"device": "cpu", "dtype": "bfloat16"})
    monkeypatch.setattr(serve, "chosen_model", lambda _: (model_folder, trained))
    worker = config_of(Serve(model=str(model_folder), device=device)).worker
    assert (worker.device, worker.dtype) == ("cpu", "bfloat16")


def test_beyond_this_machine_it_says_what_it_is_for(model_folder):
    said = {"intended_use": "tests", "incident_contact": "me@example.org"}
    config = config_of(Serve(model=str(model_folder), host="0.0.0.0", **said))
    assert config.incident_contact == "me@example.org"


@pytest.mark.anyio
async def test_one_key_comes_by_the_environment_and_is_nowhere_in_clear(
    model_folder, make_client, scripted, monkeypatch, tokenizer
):
    secret = "0123456789abcdef-secret"
    monkeypatch.setenv("NALAR_API_KEY", secret)
    config = config_of(Serve(model=str(model_folder)))
    assert secret not in config.model_dump_json() and "NALAR_API_KEY" not in os.environ
    engine = scripted([[tokenizer.end_think_id, 9, tokenizer.end_id]])
    client = make_client(engine, api_key_sha256=config.api_key_sha256)
    ask = {"messages": [{"role": "user", "content": "say 12"}]}
    for wrong in ({}, {"Authorization": f"Bearer {secret}x"}):
        reply = await client.post("/v1/chat/completions", json=ask, headers=wrong)
        assert reply.status_code == 401
    headers = {"Authorization": f"Bearer {secret}", "Origin": "https://elsewhere.example"}
    assert (await client.post("/v1/chat/completions", json=ask, headers=headers)).is_success


def test_a_file_of_keys_stands_alone_and_a_short_key_is_none(model_folder, monkeypatch, tmp_path):
    """Or a key of the file could be used beside its own limits."""
    monkeypatch.setenv("NALAR_API_KEY", "0123456789abcdef-secret")
    config = config_of(Serve(model=str(model_folder), api_keys=tmp_path / "keys.json"))
    assert config.api_key_sha256 is None
    monkeypatch.setenv("NALAR_API_KEY", "short")
    with pytest.raises(UserError, match="16 characters"):
        config_of(Serve(model=str(model_folder)))


def test_told_to_stop_before_it_serves_it_stops(model_folder, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(number, _frame):
        raise Stopped

    def create_app(config, link):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("nobody heard it")

    monkeypatch.setattr("nalar.server.http.app.create_app", create_app)
    monkeypatch.setattr("nalar.server.http.logs.log_json", lambda level: None)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped):
            serve.run([str(model_folder), "--port", "0"])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_port_that_is_taken_is_named(model_folder, capsys):
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        assert main(["serve", str(model_folder), "--port", port]) == 2
    assert f"--port {port}" in capsys.readouterr().err
