"""`nalar plan` of a model: a published one, a folder's, a run's."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nalar.cli import main as main_module
from nalar.model.families.registry import FAMILIES
from nalar.plan.published import PUBLISHED
from nalar.plan.sizes import sizes_of
from nalar.recipes.zero import zero_tiny
from nalar.run import Run

TINY = {
    "model_type": "qwen3",
    "vocab_size": 50,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
SOURCE = str(Path(main_module.__file__).parents[2])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(TINY))
    return path


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("deepseek-v3", 671_026_419_200, 37_552_297_472),
        ("kimi-k2", 1_026_408_232_448, 32_861_500_928),
        ("moonlight-16b-a3b", 15_960_110_208, 2_914_776_192),
    ],
)
def test_a_published_model_is_known_by_name(name, total, active, nalar_):
    called = nalar_("plan", name, "--json")
    document = called.document
    assert (called.code, document["schema_version"], document["name"]) == (0, 1, name)
    assert (document["total_params"], document["active_params"]) == (total, active)
    assert document["source"] == PUBLISHED[name].source
    assert document["context_tokens"] == 4096
    expected = sizes_of(PUBLISHED[name].config, context_tokens=4096).model_dump(mode="json")
    assert expected.items() <= document.items()
    assert f"{total:,}" in called.err


def test_the_context_that_operations_are_counted_for_can_be_chosen(nalar_):
    short, long = (
        nalar_("plan", "kimi-k2", "--context", n, "--json").document for n in ("1", "100000")
    )
    assert (short["context_tokens"], long["context_tokens"]) == (1, 100_000)
    assert long["flops_per_token"] > short["flops_per_token"]
    assert long["kv_bytes_per_token"] == short["kv_bytes_per_token"]


def test_people_get_a_table_of_the_parts_that_the_model_has(nalar_):
    called = nalar_("plan", "qwen3-30b-a3b")
    assert called.code == 0
    for shown in ("30,532,122,624", "3,353,032,704", "routed experts", "GFLOP", "61.1 GB"):
        assert shown in called.out
    assert "dense" not in called.out
    assert "prediction" not in called.out
    assert "multi-token prediction" in nalar_("plan", "deepseek-r1").out


def test_a_folder_is_counted_by_its_config(folder, nalar_):
    document = nalar_("plan", "model", "--json").document
    attention, feed_forward, norms = 2 * 8 * 8 + 2 * 8 * 4, 3 * 8 * 12, 2 * 8 + 2 * 4
    assert document["total_params"] == 50 * 8 + 3 * (attention + feed_forward + norms) + 8
    assert document["params"]["head"] == 0
    assert document["model_type"] == "qwen3"
    assert document["kv_bytes_per_token"]["bfloat16"] == 2 * 3 * 2 * 4
    assert document["source"] == str(Path("model/config.json"))
    assert nalar_("plan", str(folder), "--json").document["params"] == document["params"]


def test_a_folder_of_a_published_model_counts_as_its_name_does(folder, nalar_):
    published = FAMILIES["deepseek_v3"].publish_config(PUBLISHED["deepseek-v3"].config)
    stored = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (folder / "config.json").write_text(json.dumps(published | stored))
    own = {"name", "source"}
    by_folder, by_name = (
        nalar_("plan", name, "--json").document.items() for name in ("model", "deepseek-v3")
    )
    assert {k: v for k, v in by_folder if k not in own} == {
        k: v for k, v in by_name if k not in own
    }


def test_the_model_of_a_run_is_counted(folder, nalar_):
    config = zero_tiny()
    run = Run.create(Path("runs"), "r", config.model_dump(mode="json"), "nalar demo", 0)
    checkpoint = run.path / "checkpoints" / "pretrain-1"
    checkpoint.mkdir(parents=True)
    published = FAMILIES["deepseek_v3"].publish_config(config.model)
    (checkpoint / "config.json").write_text(json.dumps(published))
    (run.path / "model").symlink_to(Path("checkpoints") / "pretrain-1")
    document = nalar_("plan", "r", "--json").document
    recipe = nalar_("plan", "zero-tiny", "--json").document["forecast"]
    balance = document["params"]["balance"]  # buffers, which a recipe does not train
    assert document["total_params"] - balance == recipe["total_params"]
    assert document["active_params"] - balance == recipe["active_params"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("deepsek-v3", "deepseek-v3"), ("kimi-k3", "kimi-k2"), ("zero-cpuu", "zero-cpu")],
)
def test_an_unknown_name_shows_the_nearest(name, hint, nalar_):
    called = nalar_("plan", name, "--json")
    error = called.document["error"]
    assert (called.code, set(called.document)) == (2, {"schema_version", "error"})
    assert f"'{hint}'" in error["hint"]
    assert "moonlight-16b-a3b" in error["want"] and "zero-tiny" in error["want"]


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"model_type": "mamba"}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"attention_sinks": 4}, "attention_sinks"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 10**300}, "hidden_size"),
    ],
)
def test_a_config_that_cannot_be_counted_is_named_by_file_and_field(change, at, folder, nalar_):
    (folder / "config.json").write_text(json.dumps(TINY | change))
    called = nalar_("plan", "model", "--json")
    assert called.code == 2
    error = called.document["error"]
    assert error["at"].startswith("model/config.json: ") and error["at"].endswith(at)
    assert "Traceback" not in called.err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a":' * 100_000, "\xff"])
def test_a_config_that_is_no_json_object_is_named(text, folder, nalar_):
    (folder / "config.json").write_text(text, encoding="latin-1")
    called = nalar_("plan", "model", "--json")
    assert (called.code, called.document["error"]["at"]) == (2, "model/config.json")


def test_a_folder_without_a_config_says_so(folder, nalar_):
    (folder / "config.json").unlink()
    called = nalar_("plan", "model", "--json")
    assert (called.code, called.document["error"]["got"]) == (2, "no config.json")
    assert nalar_("plan", "no/such/folder").code == 2


@pytest.mark.parametrize(
    "flags",
    [["--context", "0"], ["--context", "x"], ["--context", "9" * 400], ["--contxt", "1"]],
)
def test_flags_that_cannot_be_are_refused(flags, nalar_):
    called = nalar_("plan", "kimi-k2", *flags, "--json")
    assert (called.code, set(called.document)) == (2, {"schema_version", "error"})
    assert "Traceback" not in called.err


def test_a_model_takes_no_flags_of_a_recipe_and_its_help_shows_its_own(nalar_):
    assert nalar_("plan", "kimi-k2", "--rl.steps", "3").code == 2
    text = nalar_("plan", "kimi-k2", "--help").out
    assert "--context" in text and "--rl.steps" not in text
    assert "--context" in nalar_("plan", "--help").out


def seconds_in_a_new_interpreter(program: str, cwd: Path) -> float:
    """Of the faster of two."""
    taken = []
    for _ in range(2):
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": SOURCE},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        taken.append(time.perf_counter() - begun)
    return min(taken)


PLAN = "from nalar.cli.main import main; main(['plan', {name!r}, '--json'])"


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["kimi-k2", "model"])
def test_the_answer_needs_none_of_the_heavy_libraries(name, folder):
    heavy = {"torch", "transformers", "matplotlib", "safetensors", "tokenizers", "jinja2"}
    program = f"import sys; {PLAN.format(name=name)}; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stderr.splitlines()[-1].split()
    assert "nalar.plan.sizes" in loaded
    assert not heavy & set(loaded)
    assert json.loads(done.stdout)["total_params"] > 0


@pytest.mark.slow  # it loads torch twice; the test above names the library that would cost the time
def test_the_answer_is_there_long_before_torch_would_be(tmp_path):
    """A quarter of the time that torch takes to load, as measured on two cores; half is the bound."""
    answer = seconds_in_a_new_interpreter(PLAN.format(name="kimi-k2"), tmp_path)
    assert answer < 0.5 * seconds_in_a_new_interpreter("import torch", tmp_path)
