"""What the flags of `nalar serve` come to. That it serves: test_drain.py."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from tests.server.serving import SOURCES

from nalar.cli import flags, serve
from nalar.cli.main import main
from nalar.cli.serve import Serve, config_of
from nalar.config import UserError
from nalar.recipes.zero import zero_cpu
from nalar.server.config import SamplingDefaults
from nalar.server.http.address import listen, url_of
from nalar.server.http.app import create_app
from nalar.server.thinking_config import EffortConfig

TELL_WHAT_CAME = """
import sys
from nalar.cli.main import main
code = main(sys.argv[1:])
print(code, [name for name in ("torch", "fastapi", "uvicorn") if name in sys.modules])
"""


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_flags_become_a_config(model_folder, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"input": "flag", "words": str(tmp_path / "words.txt")}))
    words = ["--prices", "0.56", "0.14", "2.24", "--policy", str(policy), "--threads", "1"]
    words += ["--efforts", "low=512", "high=8192", "medium=none"]
    config = config_of(flags.parse(Serve, [str(model_folder), *words], verb="serve"))
    assert config.efforts == EffortConfig(low=512, medium=None, high=8192)
    assert config.served_model_names == (model_folder.name,)
    assert config.worker.folder == model_folder and config.worker.engine.max_model_len == 512
    assert config.prices.cached_input_usd == 0.14 and config.policy.input == "flag"
    assert config.default_max_tokens is None  # no run says how long its answers are


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        ({}, SamplingDefaults(temperature=0.6, top_p=0.95, min_p=0.1, repetition_penalty=1.05)),
        (
            {"temperature": 0.0},
            SamplingDefaults(temperature=0, top_p=0.95, min_p=0.1, repetition_penalty=1.05),
        ),
        ({"generation_config": "none"}, SamplingDefaults()),
        ({"generation_config": "none", "temperature": 0.3}, SamplingDefaults(temperature=0.3)),
    ],
)
def test_a_models_makers_say_how_to_sample(model_folder, tmp_path, flags, want):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    said = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(said | {"do_sample": True}))
    assert config_of(Serve(model=str(folder), **flags)).sampling == want
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 7}))
    with pytest.raises(UserError, match="json: top_p"):
        config_of(Serve(model=str(folder)))


def test_another_template_is_for_models_of_others(model_folder, server_config, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    asked = Serve(model=str(model_folder), chat_template=tmp_path / "t.jinja")
    worker = config_of(asked).worker
    assert worker.chat_template == tmp_path / "t.jinja"
    with pytest.raises(UserError, match="--chat-template"):
        create_app(server_config.model_copy(update={"worker": worker}))


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
        ({"send_timeout_s": 0.0}, "--send-timeout-s"),
        ({"efforts": ("lo=512",)}, "--efforts"),
        ({"efforts": ("low=-1",)}, "--efforts"),
        ({"efforts": ("low",)}, "--efforts"),
        ({"allowed_origins": ("*",)}, "--allowed-origins"),
        ({"allowed_origins": ("https://a.example/chat",)}, "--allowed-origins"),
        ({"temperature": -1.0}, "--temperature"),
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


def from_file(tmp_path, settings, *flags):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    return config_of(serve.asked_of(["--config", str(path), *flags]))


def test_a_file_says_what_flags_do_not_and_flags_win(model_folder, tmp_path):
    settings = {
        "worker": {
            "folder": str(model_folder),
            "engine": {"max_num_seqs": 4, "block_size": 16},
            "hung_after_s": 9,
        },
        "served_model_names": ["a", "b"],
        "port": 9000,
        "ledger": str(tmp_path / "l.db"),
        "admission": {"max_running": 7, "max_parallel": 2},
        "body": {"max_json_depth": 9},
        "keep_alive_s": 3,
        "prices": {"input_usd": 1},
        "policy": {"input": "flag", "words": "w.txt"},
        "reasoning_key": True,
    }
    config = from_file(tmp_path, settings)
    assert config.worker.folder == model_folder and config.worker.engine.max_model_len == 512
    assert (config.worker.engine.max_num_seqs, config.worker.engine.block_size) == (4, 16)
    assert config.worker.hung_after_s == 9 and config.served_model_names == ("a", "b")
    assert config.port == 9000 and config.ledger == tmp_path / "l.db" and config.reasoning_key
    assert (config.admission.max_running, config.admission.max_parallel) == (7, 2)
    assert config.admission.max_queued == 512 and config.keep_alive_s == 3
    assert config.body.max_json_depth == 9 and config.prices.input_usd == 1
    assert config.policy.input == "flag" and config.default_max_tokens is None
    flags = ("--port", "8000", "--max-running", "256", "--prices", "0.5", "0", "2")
    config = from_file(tmp_path, settings, *flags, "--no-reasoning-key", str(model_folder))
    assert config.port == 8000 and config.admission.max_running == 256  # as if no file were there
    assert config.prices.input_usd == 0.5 and not config.reasoning_key
    assert config.keep_alive_s == 3


@pytest.mark.parametrize(
    ("settings", "at"),
    [
        ({"prot": 9000}, "prot"),
        ({"body": {"max_json_depht": 9}}, "body.max_json_depht"),
        ({"body": {"max_json_depth": 1}}, "body.max_json_depth"),
        ({"port": "high"}, "port"),
        ({"port": 70_000}, "port"),
        ({"worker": {"engine": {"max_num_seqs": 0}}}, "worker.engine.max_num_seqs"),
        ({"worker": 3}, "worker"),
        ({"default_temperature": -1}, "default_temperature"),
    ],
)
def test_what_a_file_says_is_checked_and_named(model_folder, tmp_path, settings, at):
    with pytest.raises(UserError) as error:
        from_file(tmp_path, settings, str(model_folder))
    assert error.value.at == f"{tmp_path / 'settings.json'}: {at}"


def test_a_file_without_a_model_wants_one(tmp_path):
    with pytest.raises(UserError, match="MODEL"):
        from_file(tmp_path, {"port": 0})


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


def test_a_config_that_was_printed_whole_does_not_open_the_server(
    model_folder, monkeypatch, tmp_path
):
    printed = config_of(Serve(model=str(model_folder))).model_dump(mode="json")
    assert printed["api_key_sha256"] is None
    monkeypatch.setenv("NALAR_API_KEY", "0123456789abcdef-secret")
    assert from_file(tmp_path, printed).has_keys


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


def test_a_port_that_is_taken_is_told_before_anything_heavy_is_imported():
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        told = subprocess.run(
            [sys.executable, "-c", TELL_WHAT_CAME, "serve", "no-such-model", "--port", port],
            env=os.environ | {"PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
        )
    assert told.stdout.split() == ["2", "[]"] and f"--port {port}" in told.stderr


def test_a_port_that_is_none_is_refused(capsys):
    assert main(["serve", "no-such-model", "--port", "70000"]) == 2
    assert "--port 70000" in capsys.readouterr().err
