import xml.etree.ElementTree as ET

import pytest

from nalar.config import UserError
from nalar.evals.run_plot import Series, draw, series, stage_with
from nalar.run import Run


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path, "r", {}, "nalar demo", 0)
    for step in range(1, 41):
        values = {"loss": 1 / step, "tokens": 10 * step, "wall_s": 0.5 * step}
        run.log_metrics("pretrain", step, values)
    run.log_metrics("rl", 1, {"reward": float("nan")})
    run.log_metrics("rl", 2, {"reward": 0.5})
    return run


def picture(lines, form="svg", window=None):
    return draw(lines, title="t", axis="steps", metric="loss", form=form, window=window)


@pytest.mark.parametrize(("axis", "last"), [("steps", 40), ("tokens", 400), ("seconds", 20)])
def test_x_is_in_steps_tokens_or_seconds(run, axis, last):
    (line,) = series([run], "pretrain", "loss", axis)
    assert (line.x[-1], line.y[0], len(line.x)) == (last, 1.0, 40)


def test_a_metric_is_found_in_its_stage_and_gaps_stay_gaps(run):
    assert (stage_with([run], "loss"), stage_with([run], "reward")) == ("pretrain", "rl")
    (line,) = series([run], "rl", "reward", "steps")
    assert line.y == [None, 0.5]


def test_what_came_before_a_step_can_be_left_out(run):
    (line,) = series([run], "pretrain", "loss", "steps", first_step=30)
    assert line.x[0] == 30
    with pytest.raises(UserError, match="at most 40"):
        series([run], "pretrain", "loss", "steps", first_step=41)


def test_a_misspelt_metric_names_the_nearest(run):
    with pytest.raises(UserError, match="did you mean loss"):
        stage_with([run], "los")
    with pytest.raises(UserError, match="did you mean reward"):
        series([run], "rl", "rewards", "steps")


def test_the_picture_names_every_run_and_draws_each_line_with_its_mean():
    names = ["plain", "_hidden", "$x^2$ & <b>", "esc\x1b[2J"]
    lines = [Series(name, [1.0, 2.0, 3.0], [1.0, None, 2.0]) for name in names]
    root = ET.fromstring(picture(lines, window=3))
    texts = {"".join(element.itertext()).strip() for element in root.iter() if element.text}
    assert {"plain", "_hidden", "$x^2$ & <b>"} <= texts
    assert not any("\x1b" in text for text in texts)
    # a faint and a strong line, and one in the legend; without a running mean no faint one
    single = ET.fromstring(picture(lines, window=1))
    assert [strokes(root), strokes(single)] == [3, 2]


def strokes(root):
    """Lines in the first run's colour."""
    return sum("stroke: #0072b2" in e.get("style", "") for e in root.iter())


def test_the_same_figures_make_the_same_file():
    line = Series("a", [1.0, 2.0], [3.0, 1.0])
    assert picture([line]) == picture([line])
    assert picture([line], "png").startswith(b"\x89PNG")
    assert picture([line], "pdf").startswith(b"%PDF")
