"""Fine-tuning on dialogues: it learns them, stops anywhere to the bit, and says what it cannot use."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nalar.config import ConfigError, UserError
from nalar.data.config import FileSource, ProceduralSource, TokenizerConfig
from nalar.data.dialogue import encode_prompt, parse
from nalar.data.template import CHAT_TEMPLATE
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import Request, SamplingParams
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model
from nalar.pipeline.config import SftConfig
from nalar.pipeline.sampler import load_sampler
from nalar.pipeline.sft import plan_sft, read_base, run_sft
from nalar.pipeline.state import Outcome
from nalar.run import Run

STAGES = ("held_out_before", "sft", "held_out_after")


def dialogue(a: int, b: int) -> list[dict[str, str]]:
    """A form that no base knows."""
    thought = "odd" if b % 2 else "even"
    return [
        {"role": "user", "content": f"say {a}{b}"},
        {"role": "assistant", "reasoning_content": thought, "content": "is it"},
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory, shrunk) -> Path:
    """A model that has learned nothing, as a folder."""
    tokenizer = Tokenizer.train(["say 12 is 34 ab"] * 4, TokenizerConfig(vocab_size=262))
    model = Transformer(shrunk.model.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    model.initialize(seed=0)
    path = tmp_path_factory.mktemp("base")
    save_model(model, path, token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [json.dumps({"messages": dialogue(n // 10, n % 10)}) for n in range(100)]


@pytest.fixture(scope="module")
def make_config(base, lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "d.jsonl").write_text("\n".join(lines))

    def make(**changes) -> SftConfig:
        settings = {
            "threads": 1,
            "device": "cpu",
            "model": str(base),
            "data": FileSource(path=str(folder / "d.jsonl")),
            "cache_dir": str(folder / "cache"),
            "packing": {"step_tokens": 256, "document_tokens": 64},
            "held_out_frac": 0.2,
            "epochs": 4,
            "lr": 0.02,
            "log_every_steps": 1,
            "save_every_steps": 4,
        }
        return SftConfig.model_validate(settings | changes)

    return make


@pytest.fixture(scope="module")
def go(make_recorder):
    def go(run, *, should_stop=lambda: False, observer=None) -> Outcome:
        run = Run.open(run.path)
        config = SftConfig.model_validate(run.info.config)
        return run_sft(config, run, observer or make_recorder(), should_stop)

    return go


@pytest.fixture(scope="module")
def whole(make_work, make_config, go, tmp_path_factory):
    work = make_work(tmp_path_factory.mktemp("whole"))
    run = work.create("run", make_config())
    assert go(run) is Outcome.FINISHED
    return run


def files(run) -> dict[str, bytes]:
    """Weights and optimizer states of every checkpoint."""
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in run.path.glob("checkpoints/*/**/*.safetensors")
    }


def losses(run):
    return [run.read_json(f"held_out_{when}.json")["loss"] for when in ("before", "after")]


def test_a_base_learns_a_form_of_dialogue_it_has_never_been_held_to(whole):
    before, after = losses(whole)
    assert before == pytest.approx(5.57, abs=0.1)  # log 262: knows nothing
    assert after < 0.5
    assert [m.values["held_out_loss"] for m in whole.metrics("held_out_after")] == [after]
    record = whole.read_json("data.json")["sources"][0]
    held = whole.read_json("held_out_after.json")["dialogues"]
    assert 0 < record["held_out"] == held < 50 and record["documents"] == 100


def test_what_it_learned_is_said_when_asked(whole):
    sampler = load_sampler(whole.model_dir())
    t, formed = sampler.tokenizer, 0
    params = SamplingParams(max_tokens=20, temperature=0.0, stop_token_ids=(t.end_id,))
    for n in range(0, 100, 10):
        messages = dialogue(n // 10, n % 10)
        ids = tuple(encode_prompt(t, messages[:1]))
        said = parse(t, sampler.engine.generate([Request(ids, params)])[0][0].token_ids)
        formed += said.well_formed and said.answer == "is it" and said.thought in ("odd", "even")
    assert formed >= 8


def test_the_run_has_the_files_of_every_run(whole):
    names = sorted(path.name for path in (whole.path / "checkpoints").iterdir())
    per_epoch = [name for name in names if read_is_kept(whole, name)]
    assert len(per_epoch) == 4 and names[-1] == per_epoch[-1]
    assert (whole.path / "model").readlink() == Path("checkpoints") / names[-1]
    assert (whole.path / "model" / "chat_template.jinja").read_text().strip() == CHAT_TEMPLATE
    stages = [total.name for total in whole.stage_totals()]
    assert stages == ["data", "held_out_before", "sft", "held_out_after"]
    assert all(total.tokens and total.flops for total in whole.stage_totals()[1:])
    values = whole.metrics("sft")[-1].values
    assert {"loss", "grad_norm", "tokens", "usd", "mfu_frac", "spike_score"} <= values.keys()


def read_is_kept(run, name):
    text = (run.path / "checkpoints" / name / "state" / "progress.json").read_text()
    return json.loads(text)["is_kept"]


def test_transformers_loads_the_model_and_agrees(whole):
    transformers = pytest.importorskip("transformers")
    folder = whole.model_dir()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", experts_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(dialogue(4, 2), return_tensors="pt", return_dict=False)
    ours = load_model(folder)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours(ids).states), theirs(ids).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.few(1)
@pytest.mark.parametrize("at", [("sft", 9), ("sft", 3), ("held_out_before", 1)])
def test_a_run_that_was_interrupted_ends_the_same_to_the_bit(at, make_config, whole, work, go):
    run = work.create("cut", make_config())
    work.interrupted(go, run, at)
    assert go(run) is Outcome.FINISHED
    assert files(run) == files(whole) and len(files(run)) >= 6
    assert work.timeless(run, *STAGES) == work.timeless(whole, *STAGES)
    assert losses(run) == losses(whole)


@pytest.mark.slow
def test_a_stop_is_heard_and_saved(make_config, whole, work, go):
    run, asked = work.create("stopped", make_config()), iter([False] * 8 + [True] * 9)
    assert go(run, should_stop=lambda: next(asked)) is Outcome.STOPPED
    assert go(run) is Outcome.FINISHED
    final = (whole.path / "model").readlink()
    assert all(
        files(run)[name] == data for name, data in files(whole).items() if str(final) in name
    )
    assert work.timeless(run, *STAGES) == work.timeless(whole, *STAGES)


@pytest.mark.slow
def test_micro_batches_bfloat16_and_adamw_learn_as_well(make_config, work, go):
    for name, changes in (
        ("cut", {"micro_batch_tokens": 64}),
        ("rounded", {"dtype": "bfloat16"}),
        ("adamw", {"optimizer": "adamw"}),
    ):
        run = work.create(name, make_config(epochs=2, **changes))
        assert go(run) is Outcome.FINISHED
        before, after = losses(run)
        assert after < 0.6 * before, name


def test_bad_records_are_skipped_counted_and_told(make_config, lines, work, go, recorder, tmp_path):
    turns = [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]
    bad = [
        "{",
        '{"text": "no dialogue"}',
        '{"messages": [{"role": "user", "content": "nothing to learn"}]}',
        json.dumps({"messages": turns}),
    ]
    (tmp_path / "d.jsonl").write_text("\n".join([*bad, *lines]))
    config = make_config(data=FileSource(path=str(tmp_path / "d.jsonl")), epochs=1)
    run = work.create("a", config)
    assert go(run, observer=recorder) is Outcome.FINISHED
    record = run.read_json("data.json")["sources"][0]
    assert {why: fault["count"] for why, fault in record["skipped"].items()} == {
        "no JSON object": 1,
        "no field 'messages'": 1,
        "no turn of the assistant": 1,
    }
    assert record["left_out"] == 1
    assert "1 dialogues are too long" in recorder.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing but empty files"),
        ('{"text": "a"}\n', "no field 'messages'"),
        (json.dumps({"messages": dialogue(1, 2)}), "at least one step an epoch"),
        (
            json.dumps({"messages": [{"role": "user", "content": "x" * 99}, dialogue(1, 2)[1]]}),
            "1 too long",
        ),
    ],
)
def test_data_of_which_nothing_is_left_ends_the_run_with_an_error(
    text, words, make_config, work, go, tmp_path
):
    (tmp_path / "d.jsonl").write_text(text)
    config = make_config(data=FileSource(path=str(tmp_path / "d.jsonl")), held_out_frac=0.0)
    with pytest.raises(UserError, match=words):
        go(work.create("a", config))


def test_without_held_out_dialogues_nothing_is_measured_and_it_says_so(
    make_config, work, go, recorder
):
    run = work.create("a", make_config(held_out_frac=0.0, epochs=1))
    assert go(run, observer=recorder) is Outcome.FINISHED
    assert not (run.path / "held_out_before.json").exists()
    assert any("no dialogue is held out" in note for note in recorder.notes)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("chat_template.jinja", "{{ messages }}", "without </think>, which has no place"),
        ("chat_template.jinja", CHAT_TEMPLATE + "</s>", "another chat template"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{}", "byte-level tokenizer"),
        ("config.json", None, "no config.json"),
    ],
)
def test_a_base_whose_parts_do_not_fit_is_refused(name, text, words, make_config, base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=words):
        read_base(make_config(model=str(folder)))


def test_a_tokenizer_or_a_length_that_the_model_lacks_is_refused(make_config, base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    Tokenizer.train(["say 12 is"] * 4, TokenizerConfig(vocab_size=264)).save(folder)
    with pytest.raises(UserError, match="264 ids and a model of 262"):
        read_base(make_config(model=str(folder)))
    packing = {"step_tokens": 512, "document_tokens": 512}
    with pytest.raises(UserError, match="max_position_embeddings=128"):
        read_base(make_config(packing=packing))
    with pytest.raises(UserError, match="without blocks of multi-token"):
        read_base(make_config(mtp_loss_weight=0.3))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": ProceduralSource()},
        {"data": FileSource(path="a.jsonl", weight=2)},
        {"packing": {"step_tokens": 63, "document_tokens": 64}},
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, make_config):
    with pytest.raises(ConfigError):
        make_config(**changes)


def test_a_plan_is_close_to_what_is_trained(make_config, whole, monkeypatch):
    trained = whole.stage_total("sft")
    for sampled in (10, 1000):
        monkeypatch.setattr("nalar.pipeline.sft.SAMPLED", sampled)
        plan = plan_sft(make_config())
        assert plan.stages[0].tokens == pytest.approx(trained.tokens, rel=0.15)
    assert plan.total_params > 0 and plan.disk_bytes > 0
