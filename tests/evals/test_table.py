"""The report in a terminal."""

from nalar.evals import table
from nalar.evals.report import Response, SamplePair, build_report
from nalar.run import Run


def test_the_summary_shows_results_baselines_plots_and_the_bill(report):
    text = table.plain(table.summary(report))
    for wanted in ("15.2%", "56.1%", "52.6–59.6", "blind search", "█", "Total", "6 min 42 s"):
        assert wanted in text
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text


def test_the_summary_fits_eighty_columns(report):
    text = table.plain(table.summary(report), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "Pretraining" in text


def test_a_run_without_results_still_has_a_summary(tmp_path):
    run = Run.create(tmp_path, "young", {}, "nalar demo", 0)
    assert "stands at its start" in table.plain(table.summary(build_report(run)))


def test_text_of_a_model_can_neither_style_nor_steer_the_terminal(report):
    trap = Response(
        thought="[red]1+2=3✗\x1b[2J",
        answer="[/]\x07",
        correct=False,
        finish_reason="stop",
        tokens=9,
    )
    pair = SamplePair(task="countdown", prompt="make 1 from 2", before=trap, after=None)
    text = table.plain(table.samples(report.model_copy(update={"samples": [pair]})))
    assert "[red]1+2=3✗" in text
    assert "[/]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_line_of_blocks_goes_from_zero_to_its_top():
    assert table.block_plot([0, 0.5, 1.0], width=3, height=1) == ["▁▄█"]
    assert table.block_plot([0.5, None, 1.0], width=3, top=2.0, height=1) == ["▂ ▄"]
    assert table.block_plot([], width=3, height=1) == [""]


def test_a_line_of_blocks_narrower_than_its_values_shows_their_means():
    assert table.block_plot([0, 2, 2, 2], width=2, top=2, height=1) == ["▄█"]


def test_a_block_plot_fills_lines_from_below():
    assert table.block_plot([0.25, 0.5, 1.0], width=3, height=2, top=1.0) == ["  █", "▄██"]
