"""The whole pipeline, small: what it leaves behind, and that stopping and going on changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nalar.cli.main import main
from nalar.data.dialogue import encode_prompt
from nalar.data.packing import Packing
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import Request, SamplingParams
from nalar.model.weights import load_model
from nalar.pipeline.config import ZeroConfig
from nalar.pipeline.sampler import load_sampler
from nalar.pipeline.zero import Outcome
from nalar.plan.model import count_parameters, flops_per_token, sequence_flops
from nalar.run import Run

pytestmark = pytest.mark.few(1)

STAGES = ["pretrain", "evaluate_base", "rl", "evaluate_final", "report"]
TIME = {"wall_s", "usd", "tokens_per_s"}
STEPS = 20  # of a slice


def weights(run, name):
    return load_file(run.path / "checkpoints" / name / "model.safetensors")


def is_same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_comes_to_its_end_and_tells_the_observer(finished, shrunk):
    _, recorder, outcome = finished
    assert outcome is Outcome.FINISHED
    assert recorder.finished == STAGES
    # every stage that finishes has begun: a live display has a bar for each
    assert [stage for stage, _, _ in recorder.started] == STAGES
    assert recorder.started[0] == ("pretrain", 2 * STEPS, 0)
    assert [step for stage, step in recorder.steps if stage == "pretrain"] == [4, 8, 12, 16, 20]
    assert [step for stage, step in recorder.steps if stage == "rl"] == [1, 2, 3, 4]
    for values in recorder.values:
        assert values.keys() >= {"tokens", *TIME}
    assert any("probe after slice 1: passed" in note for note in recorder.notes)
    assert sum(note.startswith(("countdown: ", "chain_sum: ")) for note in recorder.notes) == 4


def test_a_finished_run_has_nothing_left_to_do(finished, work):
    run, *_ = finished
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    assert work.go(run) is Outcome.FINISHED
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_the_folder_holds_what_it_promises(finished):
    run, *_ = finished
    names = {p.name for p in run.path.iterdir()}
    assert names >= {
        "run.json",
        "metrics.jsonl",
        "ledger.jsonl",
        "samples",
        "checkpoints",
        "model",
        "probe.json",
        "report.json",
        "report.html",
    }
    assert not [p for p in run.path.rglob("*") if p.name.endswith(".tmp")]
    kept = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert kept == [f"pretrain-{STEPS:06d}", "rl-000003", "rl-000004"]  # the last two of a stage
    assert (run.path / "model").is_symlink()
    assert (run.path / "model").readlink() == Path("checkpoints/rl-000004")
    files = {p.name for p in (run.path / "model").iterdir()}
    assert files >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_samples_are_those_of_the_results(finished, shrunk):
    run, *_ = finished
    for stage, results in (("evaluate_base", "before"), ("evaluate_final", "after")):
        rows = run.samples(stage)
        assert len(rows) == 2 * shrunk.evals.problems * shrunk.evals.k
        said = {"thought", "answer", "calls", "finish_reason", "tokens"}
        keys = {"task", "key", "prompt", "correct"} | said
        assert all(row.keys() == keys for row in rows)
        for task, result in run.read_json(f"results_{results}.json").items():
            own = [row for row in rows if row["task"] == task]
            share = sum(row["correct"] for row in own) / len(own)
            assert result["pass_at_1"]["mean"] == pytest.approx(share)


def test_both_evaluations_ask_the_same_held_out_problems(finished):
    run, *_ = finished
    before, after = run.samples("evaluate_base"), run.samples("evaluate_final")
    assert [row["key"] for row in before] == [row["key"] for row in after]


def test_report_json_keeps_the_contract(finished, shrunk):
    run, *_ = finished
    report = json.loads((run.path / "report.json").read_text())
    assert report["schema_version"] == 1
    assert [stage["name"] for stage in report["stages"]] == STAGES
    for stage in report["stages"]:
        assert {"name", "tokens", "flops", "wall_s", "usd", "energy_wh"} <= stage.keys()
        assert stage["wall_s"] > 0
        is_model_used = stage["name"] != "report"
        assert (stage["tokens"] > 0) is (stage["flops"] > 0) is is_model_used
        assert stage["usd"] == pytest.approx(shrunk.price.usd(stage["wall_s"]))
    assert report["results"].keys() == {"before", "after"}
    for results in report["results"].values():
        assert results.keys() == {"countdown", "chain_sum"}
        for task, result in results.items():
            assert (result["n"], result["k"]) == (shrunk.evals.problems, shrunk.evals.k)
            for figure in ("pass_at_1", "pass_at_k", "maj_at_k"):
                low, high = result[figure]["ci95"]
                assert 0 <= low <= result[figure]["mean"] <= high <= 1
            for share in ("truncated_frac", "well_formed_frac"):
                assert 0 <= result[share] <= 1
            assert 0 < result["mean_response_tokens"] <= shrunk.evals.max_tokens
            assert (result["self_check_frac"] is None) == (task == "chain_sum")
    model = load_model(run.path / "model")
    assert report["model"]["total_params"] == sum(p.numel() for p in model.parameters())
    assert report["model"]["active_params"] == count_parameters(shrunk.model).active_params
    assert report["baselines"] is not None
    assert [probe["slice"] for probe in report["probe"]] == [1]
    assert report["seed"] == 0
    assert report["command"] == "nalar demo zero-shrunk"
    assert {"commit", "hardware"} <= report.keys()


def test_the_receipt_counts_by_formula(finished, shrunk):
    run, *_ = finished
    totals = {receipt.name: receipt for receipt in run.stage_totals()}
    assert list(totals) == STAGES
    batches = Packing(Tokenizer.load(run.model_dir()), shrunk.corpus, shrunk.packing, shrunk.seed)
    lengths = [n for step in range(STEPS) for n in batches.batch(step).lengths]
    trained = sum(sequence_flops(shrunk.model, n, backward=True) for n in lengths)
    probed = totals["pretrain"].tokens - sum(lengths)
    assert 0 < probed <= 4 * 2 * 24
    assert totals["pretrain"].flops > trained
    assert totals["pretrain"].flops < trained * 1.1  # the probe is small
    for stage in ("evaluate_base", "evaluate_final"):
        assert totals[stage].tokens == sum(row["tokens"] for row in run.samples(stage))
    sampled = sum(m.values["sampled_tokens"] for m in run.metrics("rl"))
    assert totals["rl"].tokens == sampled
    assert run.metrics("rl")[-1].values["tokens"] == sampled


def test_rl_trained_on_what_it_sampled(finished):
    run, *_ = finished
    metrics = [m.values for m in run.metrics("rl")]
    assert any(m["silent_groups"] < 4 for m in metrics)
    assert all(m.get("first_log_ratio_rms", 0.0) < 1e-5 for m in metrics)
    assert not is_same(weights(run, f"pretrain-{STEPS:06d}"), weights(run, "rl-000004"))


def test_the_tokenizer_in_the_folder_gives_the_same_ids(finished):
    run, *_ = finished
    transformers = pytest.importorskip("transformers")
    own = Tokenizer.load(run.path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(run.path / "model")
    for text in ("make 24 from 3 8 9", "8-3=5,5*9=45✗\n", "kopi é 你好 \x00", "  two  spaces"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == own.encode(text)
        assert theirs.decode(own.encode(text)) == text == own.decode(own.encode(text))
    assert theirs.eos_token_id == own.end_id
    assert len(theirs) == own.vocab_size


def test_transformers_loads_the_model_and_says_the_same(finished):
    run, *_ = finished
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        run.path / "model", dtype=torch.float32
    ).eval()
    ours = load_model(run.path / "model")
    rows = run.samples("evaluate_final")
    own = Tokenizer.load(run.path / "model")
    for row in (rows[0], rows[-1]):
        text = f"<|user|>{row['prompt']}<|assistant|><think>{row['thought']}</think>{row['answer']}"
        ids = torch.tensor([own.encode(text, allow_special=True)])
        with torch.no_grad():
            expected = theirs(ids).logits
            got = ours.logits(ours(ids).states)
        assert (got - expected).abs().max() / expected.abs().max() < 2e-5
    engine = load_sampler(run.path / "model").engine
    prompt = encode_prompt(own, [{"role": "user", "content": "3+4-5+6+1"}])
    greedy = SamplingParams(temperature=0.0, max_tokens=20, stop_token_ids=(own.end_id,))
    (completion,) = engine.generate([Request(tuple(prompt), greedy)])[0]
    generated = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
    assert generated[0, len(prompt) :].tolist() == list(completion.token_ids)


@pytest.mark.slow  # test_exact_resume.py compares two runs of one seed too
def test_one_seed_gives_the_same_run_to_the_bit_and_another_does_not(finished, shrunk, work):
    run, *_ = finished
    again = work.create("again", shrunk)
    assert work.go(again, until="rl") is Outcome.FINISHED
    assert is_same(weights(run, "rl-000004"), weights(again, "rl-000004"))
    for stage in STAGES[:3]:
        assert work.timeless(run, stage) == work.timeless(again, stage)
    assert run.samples("evaluate_base") == again.samples("evaluate_base")
    other = work.create("other", shrunk.model_copy(update={"seed": 1}))
    assert work.go(other, until="pretrain") is Outcome.FINISHED
    name = f"pretrain-{STEPS:06d}"
    assert not is_same(weights(run, name), weights(other, name))


class StopAfter:
    """Asks for a stop from the n-th question on."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("questions", [0, 7, STEPS])
def test_stopping_in_pretraining_and_going_on_changes_no_bit(finished, shrunk, work, questions):
    """Before the first step, within the slice, and with its last step."""
    run, *_ = finished
    stopped = work.create("stopped", shrunk)
    assert work.go(stopped, should_stop=StopAfter(questions)) is Outcome.STOPPED
    assert stopped.model_dir().readlink().name == f"pretrain-{questions:06d}"
    assert work.go(stopped, until="pretrain") is Outcome.FINISHED
    name = f"pretrain-{STEPS:06d}"
    assert is_same(weights(run, name), weights(stopped, name))
    assert work.timeless(run, "pretrain") == work.timeless(stopped, "pretrain")
    totals = [r.stage_total("pretrain") for r in (run, stopped)]
    assert totals[0].tokens == totals[1].tokens
    assert totals[0].flops == pytest.approx(totals[1].flops)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 2, 3])
def test_stopping_in_rl_and_going_on_changes_no_bit(finished, shrunk, work, recorder, steps):
    """Before its first step, between two checkpoints, and right after one."""
    run, *_ = finished
    stopped = work.create("stopped", shrunk)

    def should_stop():
        return any(stage == "rl" for stage, *_ in recorder.started) and (
            sum(stage == "rl" for stage, _ in recorder.steps) >= steps
        )

    outcome = work.go(stopped, should_stop=should_stop, observer=recorder)
    assert outcome is Outcome.STOPPED
    assert "rl" not in recorder.finished
    assert work.go(stopped, until="rl") is Outcome.FINISHED
    assert is_same(weights(run, "rl-000004"), weights(stopped, "rl-000004"))
    state = [
        load_file(r.path / "model" / "state" / "optimizer.safetensors") for r in (run, stopped)
    ]
    assert is_same(*state)
    assert work.timeless(run, "rl") == work.timeless(stopped, "rl")
    totals = [r.stage_total("rl") for r in (run, stopped)]
    assert totals[0].tokens == totals[1].tokens
    assert totals[0].flops == pytest.approx(totals[1].flops)


@pytest.mark.slow  # a kill is harder, and test_exact_resume.py has some in every suite
@pytest.mark.parametrize("at", [("pretrain", 8), ("evaluate_base", 1), ("rl", 2), ("rl", 4)])
def test_an_interrupt_anywhere_costs_work_but_changes_no_result(finished, shrunk, work, at):
    """A second Ctrl-C: nothing is saved any more, and what was done since the last checkpoint is done again."""
    run, *_ = finished
    cut = work.create("cut", shrunk)
    work.interrupted(work.go, cut, at)
    assert work.go(cut, until="rl") is Outcome.FINISHED
    assert is_same(weights(run, "rl-000004"), weights(cut, "rl-000004"))
    for stage in STAGES[:3]:
        assert work.timeless(run, stage) == work.timeless(cut, stage)
    assert [(r.name, r.tokens) for r in cut.stage_totals()] == [
        (r.name, r.tokens) for r in run.stage_totals()[:3]
    ]


def test_a_stop_in_an_evaluation_is_heard_and_its_time_kept(finished, shrunk, work, recorder):
    run, *_ = finished
    stopped = work.create("stopped", shrunk)

    def should_stop():
        return ("evaluate_base", 1) in recorder.steps

    assert work.go(stopped, should_stop=should_stop, observer=recorder) is Outcome.STOPPED
    first = stopped.stage_total("evaluate_base")
    assert first is not None and first.tokens > 0
    lines = (stopped.path / "ledger.jsonl").read_text().splitlines()
    spent = json.loads(lines[-1]) | {"wall_s": 1000.0}
    (stopped.path / "ledger.jsonl").write_text("\n".join([*lines[:-1], json.dumps(spent)]) + "\n")
    assert work.go(stopped, until="evaluate_base") is Outcome.FINISHED
    assert stopped.samples("evaluate_base") == run.samples("evaluate_base")
    again, whole = (r.stage_total("evaluate_base") for r in (stopped, run))
    assert again.tokens == whole.tokens  # what was sampled twice made one result
    assert again.wall_s > 1000
    assert [r.name for r in stopped.ledger()] == ["pretrain", "pretrain", "evaluate_base"]


def test_a_base_that_fails_its_probe_ends_the_run_before_rl(shrunk, work, recorder):
    probe = shrunk.probe.model_copy(update={"min_hits": 10_000})
    run = work.create("a", shrunk.model_copy(update={"probe": probe}))
    assert work.go(run, observer=recorder) is Outcome.PROBE_FAILED
    assert recorder.finished == []
    assert [stage for stage, _, _ in recorder.started] == ["pretrain"]
    assert run.model_dir().readlink().name == f"pretrain-{2 * STEPS:06d}"  # every slice was used
    verdicts = json.loads((run.path / "probe.json").read_text())
    assert [v["slice"] for v in verdicts] == [1, 2]
    assert not any(v["passed"] for v in verdicts)
    tokens = run.stage_total("pretrain").tokens
    assert work.go(run) is Outcome.PROBE_FAILED  # asked again, it trains no more
    assert run.stage_total("pretrain").tokens < tokens + 1000
    assert len(json.loads((run.path / "probe.json").read_text())) == 2
    assert work.go(run, force=True, until="evaluate_base") is Outcome.FINISHED


TINY = {
    "threads": 1,
    "pretrain.slice-tokens": 4608,
    "pretrain.max-slices": 1,
    "probe.max-tokens": 8,
    "probe.min-hits": 10_000,
    "evals.problems": 2,
    "evals.k": 2,
    "evals.max-tokens": 8,
    "rl.steps": 1,
    "rl.max-tokens": 8,
}
TINY_FLAGS = [word for flag, value in TINY.items() for word in (f"--{flag}", str(value))]


@pytest.mark.slow
def test_the_command_line_exits_with_1_after_a_failed_probe_and_force_goes_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "zero-tiny", "--run", "a", "--json", *TINY_FLAGS]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["outcome"] == "probe_failed"
    assert document["resume"] == "nalar demo --run runs/a --resume --force"
    assert main(["demo", "--run", "a", "--resume", "--force", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["outcome"] == "finished"
    assert [stage["name"] for stage in document["report"]["stages"]] == STAGES
    assert (
        main(["eval", "a", "--task", "countdown", "--problems", "2", "--max-tokens", "8", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["countdown"]["n"] == 2
    assert Run.open(tmp_path / "runs" / "a").info.name == "a"


def test_a_run_with_draft_blocks_trains_them_and_rl_leaves_them_alone(shrunk, work):
    config = shrunk.model_dump()
    config["model"]["num_nextn_predict_layers"] = 1
    config["pretrain"]["mtp_loss_weight"] = 0.3
    config["rl"]["steps"] = 2
    config = ZeroConfig.model_validate(config)
    run = work.create("deep", config)
    assert work.go(run, until="rl", force=True) is Outcome.FINISHED
    losses = [m.values["mtp_loss"] for m in run.metrics("pretrain")]
    assert losses[-1] < losses[0] < 7
    assert all("mtp_loss" not in m.values for m in run.metrics("rl"))
    checkpoints = run.path / "checkpoints"
    base, trained = (
        load_file(next(checkpoints.glob(f"{stage}-*")) / "model.safetensors")
        for stage in ("pretrain", "rl")
    )
    assert base.keys() == trained.keys()
    copies = {f"model.layers.2.{name}.weight" for name in ("embed_tokens", "shared_head.head")}
    own = {key for key in base if key.startswith("model.layers.2.")} - copies
    assert len(own) > 8 and copies <= base.keys()
    assert all(torch.equal(base[key], trained[key]) for key in own)
    assert not torch.equal(base["lm_head.weight"], trained["lm_head.weight"])
    spent = run.stage_total("pretrain")
    plain = config.model.model_copy(update={"num_nextn_predict_layers": 0})
    assert spent.flops > 1.2 * spent.tokens * flops_per_token(plain, 24, backward=True)
