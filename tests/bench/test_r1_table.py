"""What bench/r1.py says of results made by hand: problem by problem, stage by stage, of alarms, in a document."""

import pytest

from controls.r1_aims import AIMS, moved
from controls.r1_figures import Model, figures_of, spread, spread_of
from controls.r1_place import NEEDS, PIPELINE, Place
from controls.r1_results import Arm, Attempt, EqualFlops, Joined, One, joined
from controls.r1_table import sections, write_r1_table
from controls.r1_table_arms import fell, verdict_on
from controls.r1_watch import GAMED, Said, Truth, Watched, alarms, quick
from controls.spread import Spread
from nalar.config import UserError
from nalar.evals.r1_report import SideBySide, StageReceipt
from nalar.evals.r1_results import ModelResult
from nalar.evals.report import Response
from nalar.evals.results import Estimate, TaskResult
from nalar.machine import environment
from nalar.recipes.r1 import r1_cpu, r1_tiny
from nalar.rl.config import AlarmsConfig, RLConfig
from nalar.run import Metric

PROBLEMS = 40
MIXED = "maka the dan and jadi so karena because"
ENGLISH = "so the sum is this because of that"


# --- what samples say, problem by problem


def row(key, correct, *, mode="on", task="linear", thought=ENGLISH, quality=None):
    found = {"task": task, "key": key, "mode": mode, "thought": thought, "correct": correct}
    return found if quality is None else found | {"quality": quality}


def test_figures_by_problem():
    rows = [
        row("b", True),
        row("b", False, thought=MIXED),
        row("a", True, thought="1+2 3"),
        row("a", True, thought="4"),
        row("b", False, mode="off", thought=""),
    ]
    found = figures_of(rows, [])
    on = found["on"]["linear"]
    assert on.correct == [0.5, 1.0]  # in the order in which they were asked
    assert on.readable == [0.5, None]  # a bare calculation says nothing
    assert on.quality is None and on.wins is None
    assert found["off"]["linear"].correct == [0.0]


def test_wins_are_told_against_the_base_on_the_same_problems():
    own = [
        row(key, True, task="general", quality=q) for key, q in (("a", 0.9), ("a", 0.5), ("b", 0.2))
    ]
    base = [row(key, True, task="general", quality=q) for key, q in (("a", 0.5), ("b", 0.7))]
    found = figures_of(own, base)["on"]["general"]
    assert found.quality == [0.7, 0.2]
    assert found.wins == [0.75, 0.0]  # one above and one level; one below
    assert figures_of(own, base[:1])["on"]["general"].wins is None


def test_seeds_are_read_as_one_problem_by_problem():
    found = spread_of([[1.0, None, 0.0, 1.0], [1.0, 0.0, None, 0.0]])
    assert [e.mean for e in found.by_seed] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert found.overall.mean == pytest.approx(0.5)
    assert found.overall.ci95[0] <= 0.5 <= found.overall.ci95[1]
    assert spread_of([[1.0] + [None] * 19, [1.0] * 20]) is None  # hardly a thought in words
    assert spread_of([[], []]) is None


# --- what a stage was meant to move


def task_result(share, **changes):
    flat = Estimate(mean=share, ci95=(share, share))
    given = {
        "n": PROBLEMS,
        "k": 1,
        "pass_at_1": flat,
        "pass_at_k": flat,
        "maj_at_k": flat,
        "truncated_frac": 0.0,
        "well_formed_frac": 1.0,
        "mean_response_tokens": 9.0,
        "self_check_frac": None,
    }
    return TaskResult(**(given | changes))


def model(stage="sft", *, linear=0.5, general=0.5, quality=None, off=None, **about):
    """A model that solves these shares of the problems; with `off`, asked with less thought too."""
    rating = general if quality is None else quality

    def rows(mode, task, share):
        rated = {"quality": rating} if task == "general" else {}
        return [
            row(f"{task}{i}", i < share * PROBLEMS, mode=mode, task=task, **rated)
            for i in range(PROBLEMS)
        ]

    asked = [*rows("on", "linear", linear), *rows("on", "general", general)]
    modes = {}
    if off is not None:
        asked += [*rows("off", "linear", off), *rows("budget", "linear", off)]
        modes = {
            "off": {"linear": task_result(off, thought_frac=about.get("thought_frac", 0.0))},
            "budget": {"linear": task_result(off, longest_thought_tokens=about.get("longest", 16))},
        }
    result = ModelResult(
        stage=stage,
        tasks={"linear": task_result(linear), "general": task_result(general)},
        thought_tokens={"linear": 7.0, "general": 3.0},
        quality={"general": Estimate(mean=rating, ci95=(rating - 0.01, rating + 0.01))},
        modes=modes,
    )
    return Model.read(result.model_dump(), asked, [r for r in asked if r["mode"] == "on"])


def said_of(found, stage, figure="correct"):
    (one,) = [one for one in found if one.aim.stage == stage and one.aim.figure == figure]
    return one


def test_what_helps_what_does_not_and_what_is_lost():
    seeds = [
        {
            "base": model(linear=0.1),
            "zero": model(linear=0.9),
            "dev1": model(linear=0.1),
            "dev2": model(linear=0.1 + 0.025 * seed),
        }
        for seed in range(3)
    ]
    found = moved(seeds)
    zero, cold, rl1 = (said_of(found, stage) for stage in ("zero", "cold_start", "rl1"))
    assert (zero.stands, zero.said, zero.seeds_apart) == ("above", "helps", 3)
    assert (cold.stands, cold.said, cold.seeds_apart) == ("below", "**is lost**", 3)
    assert (rl1.stands, rl1.seeds_apart) == ("level", 0) and "does not help" in rl1.said
    assert said_of(found, "cold_start", "readable").task == "linear"
    assert not [one for one in found if one.aim.stage in ("sft", "rl2", "distil")]  # not measured


def test_harm_is_called_harm():
    pair = [
        {"student": model(linear=0.9, general=0.9), "distilled": model(linear=0.1, general=0.9)}
    ]
    found = [one for one in moved(pair) if one.aim.stage == "distil"]
    assert [one.said for one in found if one.task == "linear"] == ["**does harm**"]


def test_every_aim_is_of_a_stage_and_of_models_in_their_order():
    config = r1_cpu()
    names = ["base", "zero", "dev1", "dev2", "dev3", "final", "student", "distilled", "on-policy"]
    for aim in AIMS:
        assert aim.stage in config.stages
        assert names.index(aim.before) < names.index(aim.after)


# --- alarms


def steps_of(scores, held_out, *, every=1):
    """Metrics of a run: a model's score by step; pass@1 on held-out problems at every look."""
    found = []
    for i, score in enumerate(scores, start=1):
        values = {} if score is None else {"preference_score": score}
        if i % every == 0:
            values["held_out_pass_at_1/general"] = held_out[i // every - 1]
        found.append(Metric("rl", i, values))
    return found


def config_of(window=8):
    return RLConfig(steps=20, alarms=AlarmsConfig(window_steps=window))


def test_the_alarm_is_worked_out_again_from_metrics_alone():
    rising = [0.3 + 0.03 * i for i in range(20)]
    falling = [0.9 - 0.03 * i for i in range(20)]
    (said,) = [
        s for s in alarms(steps_of(rising, falling), config_of(), "float32") if s.name == GAMED
    ]
    assert (said.step, said.metric) == (16, "held_out_pass_at_1/general")
    assert said.value < said.limit == pytest.approx(0.8)
    assert not alarms(steps_of(rising, [0.9] * 20), config_of(), "float32")  # the truth holds
    assert not alarms(steps_of([0.3] * 20, falling), config_of(), "float32")  # no reward rose


def test_half_the_window_sees_what_lasts_for_less():
    late = [None] * 8 + [0.3 + 0.06 * i for i in range(12)]
    metrics = steps_of(late, [0.9] * 8 + [0.9 - 0.05 * i for i in range(12)])
    assert not alarms(metrics, config_of(), "float32")
    assert [s.name for s in alarms(metrics, quick(config_of()), "float32")] == [GAMED]


def test_a_number_that_is_none_does_not_break_the_file():
    (said,) = alarms([Metric("rl", 1, {"reward": float("nan")})], config_of(), "float32")
    assert (said.name, said.value, said.limit) == ("not finite", None, None)


def test_what_the_truth_did_decides_what_an_alarm_was_worth():
    before = model(general=0.9)
    assert fell(model(general=0.1), before) == ["general"]
    assert fell(model(general=0.9, quality=0.2), before) == ["general"]
    assert fell(model(general=1.0), before) == []
    assert verdict_on(is_said=True, has_fallen=True) == "gamed, and caught"
    assert "missed" in verdict_on(is_said=False, has_fallen=True)
    assert "no lower" in verdict_on(is_said=True, has_fallen=False)
    assert verdict_on(is_said=False, has_fallen=False) == "not gamed, and quiet"


# --- the document


def watched_of(*, scores, qualities, said=()):
    truth = [
        Truth(step=i, task="general", score=s, quality=q, correct=q)
        for i, (s, q) in enumerate(zip(scores, qualities, strict=True), start=1)
    ]
    return Watched(
        steps=120,
        tasks=["general"],
        model_rewards_last_steps=None,
        looks_every_steps=5,
        alarms=list(said),
        quick_alarms=list(said),
        curves={"held_out_pass_at_1/general": [[5, 0.9], [10, 0.4]]},
        truth=truth,
    )


GAME = Said(step=40, name=GAMED, metric="held_out_pass_at_1/general", value=0.4, limit=0.8)


def whole(seed):
    """A seed with everything in it."""
    models = {
        "base": model("pretrain", linear=0.1, general=0.3),
        "zero": model("zero", linear=0.8, general=0.3),
        "dev3": model("sft", linear=0.8, general=0.9, off=0.6),
        "final": model("rl2", linear=0.8, general=0.9, off=0.6),
        "student": model("student", linear=0.1, general=0.3),
        "distilled": model("distil", linear=0.8, general=0.9),
        "on-policy": model("on_policy", linear=0.9, general=0.9),
    }
    equal = EqualFlops(
        counted={"fine-tuning on traces": 6e12, "sampling the traces": 2e12},
        attempts=[Attempt(steps=10, flops=4e12), Attempt(steps=19, flops=7.6e12)],
        steps=19,
        flops=7.6e12,
        model=model("rl_as_distil", linear=0.3, general=0.3),
    )
    quiet = watched_of(scores=[0.5, 0.6], qualities=[0.9, 0.9])
    gamed = watched_of(scores=[0.5, 0.9], qualities=[0.9, 0.3], said=[GAME])
    receipt = {"row": "zero", "is_done": True, "usd": 0.1, "energy_wh": None}
    accuracy = {"mean": 0.9, "ci95": (0.8, 1.0)}
    response = {"thought": "a | b", "answer": "`2`\n| x |", "correct": True, "tokens": 3}
    return One(
        recipe="r1-tiny",
        seed=seed,
        command=f"python bench/r1.py --recipe r1-tiny --seeds {seed}",
        done=list(NEEDS),
        environment=environment(),
        evals=r1_tiny().measure.model_dump(mode="json"),
        models=models,
        stages=[
            StageReceipt(
                name="zero", title="Pure RL", tokens=2_000_000, flops=3e12, wall_s=60.0, **receipt
            )
        ],
        provenance="Of the 5 dialogues, 5 were written by models of this run.",
        reward_models={
            "preference_model": {
                "n": 100,
                "accuracy": accuracy,
                "position": {"verdicts_changed_frac": 0.0},
                "length": {"correlation": 0.12},
                "calibration_error": 0.05,
                "safe_passed": None,
                "unsafe_caught": None,
            }
        },
        samples=[
            SideBySide(
                task="linear",
                prompt="Solve x=2.",
                responses={"base": Response(finish_reason="stop", **response)},
            )
        ],
        rl={"zero": quiet},
        baselines={
            "linear": {
                "constant": {"pass_at_1": {"mean": 0.02, "ci95": (0.0, 0.05)}},
                "guess": {"pass_at_1": {"mean": 0.05, "ci95": (0.05, 0.06)}},
            }
        },
        equal={"rl_as_distil": equal},
        arms={
            "published": Arm(watched=quiet, model=model("published", general=0.9)),
            "provoked": Arm(watched=gamed, model=model("provoked", general=0.2)),
        },
    )


@pytest.fixture(scope="module")
def document():
    found = Joined(seeds={f"r1-tiny-seed{seed}": whole(seed) for seed in (0, 1, 2)})
    return "\n\n".join(sections(found))


def line_of(document, start):
    (found,) = [line for line in document.splitlines() if line.startswith(f"| {start}")]
    return found


def test_results_have_intervals_and_seeds(document):
    line = line_of(document, "zero | 80.0")
    assert "80.0 [" in line and "(80.0 · 80.0 · 80.0)" in line


def test_what_stages_move_is_said_plainly(document):
    assert "| helps |" in line_of(document, "zero: solve more")
    assert "**does not help**" in line_of(document, "rl2: answers that are preferred | general")
    assert "above chance in 3 of 3 seeds" in line_of(document, "preference_model: tell")


def test_the_switch_stands_beside_what_needs_no_model(document):
    line = line_of(document, "final, linear")
    assert "60.0 [" in line and "2.0 [0.0, 5.0] | above" in line
    assert line.endswith("| 0.0 · 0.0 · 0.0 | 16 · 16 · 16 |")
    assert "5.0 [5.0, 6.0] | –" in line_of(document, "blind guess")
    assert "That it is at most 1.0% holds." in document
    assert "the longest thought has 16" in document and "The limit holds." in document


def test_a_limit_that_does_not_hold_is_said_with_its_worst_case():
    broken = whole(0)
    broken.models["final"] = model("rl2", off=0.6, thought_frac=0.02, longest=17)
    text = "\n".join(sections(Joined(seeds={"a": broken})))
    assert "at most 2.0% (final, linear, seed 0). That it is at most 1.0% **does not hold**" in text
    assert "the longest thought has 17 (final, linear, seed 0). The limit **does not hold**" in text


def test_distillation_beside_rl(document):
    assert "fine-tuning on traces 6 · 6 · 6, sampling the traces 2 · 2 · 2" in document
    assert "RL had 19 · 19 · 19 steps, which took 0.95 · 0.95 · 0.95 of them" in document
    assert "| **above** | **above** |" in line_of(document, "so distillation is")
    assert "on-policy distillation (on-policy)" not in document  # that part has not been done


def test_gamed_and_caught(document):
    provoked = line_of(document, "provoked, seed 1")
    assert "step 40: held_out_pass_at_1/general 0.40, limit 0.80" in provoked
    assert "lower in general" in provoked and "gamed, and caught" in provoked
    assert "| quiet | quiet | no lower | not gamed, and quiet |" in line_of(
        document, "published, seed 1"
    )
    assert "0.90, 0.90, 0.40" in line_of(document, "provoked, general")
    assert "None, in zero." in document  # the pipeline's own RL


def test_text_of_a_model_cannot_leave_its_cell(document):
    line = line_of(document, "base | `a ¦ b`")
    assert line.count("|") == 3 and "'2' ⏎ ¦ x ¦" in line


def test_the_receipt_adds_up(document):
    line_of(document, "Pure RL | 2 · 2 · 2 | 3 · 3 · 3 | 60 · 60 · 60")
    line_of(document, "all | 2 · 2 · 2 | 3 · 3 · 3 | 60 · 60 · 60")


def test_words_around_the_table_stay_and_what_is_not_done_is_named(tmp_path):
    unfinished = whole(1).model_copy(
        update={"done": [PIPELINE], "refused": {"provoked": "no room"}, "arms": {}, "equal": {}}
    )
    Joined(seeds={"a": whole(0), "b": unfinished}).write(tmp_path)
    doc = tmp_path / "r1.md"
    doc.write_text(
        "# The R1 recipe\n\nWords that stay.\n\n<!-- r1: begin -->\nNot measured.\n<!-- r1: end -->\n\nEnd.\n"
    )
    for _ in range(2):
        write_r1_table(tmp_path / "results.json", doc)
    text = doc.read_text()
    assert "Words that stay." in text and text.count("### Receipt") == 1
    assert "Not measured." not in text and text.endswith("<!-- r1: end -->\n\nEnd.\n")
    assert "seed 1, provoked: no room" in text and "seed 1, published: not at its end yet" in text
    assert "Not done for every seed." in text
    with pytest.raises(UserError, match="no file"):
        write_r1_table(tmp_path / "none.json", doc)


def test_a_file_without_models_makes_a_document_all_the_same():
    one = One(recipe="r1-tiny", seed=0, command="t", refused={PIPELINE: "too small a machine"})
    text = "\n".join(sections(Joined(seeds={"a": one})))
    assert "No model has been measured." in text and "too small a machine" in text


def test_one_seed_is_shown_without_parentheses():
    text = "\n".join(sections(Joined(seeds={"a": whole(0)})))
    assert "(80.0)" not in line_of(text, "zero | 80.0")
    assert isinstance(spread([whole(0).models["zero"]], "linear", "correct"), Spread)


def test_what_was_known_stays_where_there_is_no_folder(tmp_path):
    known = Joined(seeds={"r1-tiny-seed0": whole(0)})
    found = joined(known, [Place("r1-tiny", 0, tmp_path)])
    assert found.seeds["r1-tiny-seed0"] == known.seeds["r1-tiny-seed0"]
    found.write(tmp_path)
    read = Joined.read(tmp_path)
    assert read.model_dump(mode="json") == found.model_dump(mode="json")
    with pytest.raises(UserError, match=r"results\.json"):
        Joined.read(tmp_path / "elsewhere")
