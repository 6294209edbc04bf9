"""What the flags of `nalar serve` come to. That it serves: test_drain.py."""

import json
import shutil

import pytest

from nalar.cli import serve
from nalar.cli.main import main
from nalar.cli.serve import Serve, config_of
from nalar.config import UserError
from nalar.recipes.zero import zero_cpu
from nalar.server.config import SamplingDefaults
from nalar.server.http.app import create_app
from nalar.server.http.listening import listen, url_of


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


def test_beyond_this_machine_it_says_what_it_is_for(model_folder):
    said = {"intended_use": "tests", "incident_contact": "me@example.org"}
    config = config_of(Serve(model=str(model_folder), host="0.0.0.0", **said))
    assert config.incident_contact == "me@example.org"


def test_a_port_that_is_taken_is_named(model_folder, capsys):
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert url_of(taken) == f"http://127.0.0.1:{port}"
        assert main(["serve", str(model_folder), "--port", port]) == 2
    assert f"--port {port}" in capsys.readouterr().err
