"""What the flags of `nalar serve` come to. That it serves: test_drain.py."""

import json
import os
import subprocess
import sys

import pytest
from tests.server.serving import SOURCES

from nalar.cli import flags, serve
from nalar.cli.main import main
from nalar.cli.serve import Serve, config_of
from nalar.config import UserError
from nalar.recipes.zero import zero_cpu
from nalar.server.http.address import listen, url_of
from nalar.server.thinking_config import EffortConfig

TELL_WHAT_CAME = """
import sys
from nalar.cli.main import main
code = main(sys.argv[1:])
print(code, [name for name in ("torch", "fastapi", "uvicorn") if name in sys.modules])
"""


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
