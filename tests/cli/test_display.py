import io

import pytest
from rich.console import Console

from nalar.cli.display import LiveDisplay, LogDisplay, clock, figures, watch

VALUES = {
    "reward": 0.5,
    "accuracy/countdown": 0.25,
    "response_tokens/countdown": 80.0,
    "self_check_frac": 0.6,
    "tokens_per_s": 25_000.0,
    "wall_s": 30.0,
    "usd": 0.01,
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def log() -> tuple[LogDisplay, io.StringIO, Clock]:
    file, clock_ = io.StringIO(), Clock()
    return LogDisplay(Console(file=file), {"pretrain": 0.5}, clock_), file, clock_


def test_a_log_line_says_everything_a_user_wants_and_no_control_codes():
    display, file, now = log()
    display.stage_started("rl", steps=40)
    now.now = 61.0
    display.step("rl", 10, VALUES)
    last = file.getvalue().splitlines()[-1]
    assert last == (
        "[1:01] rl 10/40 · reward 0.500 · countdown 25% · length 80 · self-check 60% · "
        "tok/s 25,000 · left 1:30 · $0.51"
    )
    assert "\x1b" not in file.getvalue()


def test_the_log_speaks_every_ten_seconds_or_25_steps_and_at_the_end():
    display, file, now = log()
    display.stage_started("rl", steps=60)
    for step in range(1, 61):
        now.now = 30.0 if step >= 40 else 0.0
        display.step("rl", step, VALUES)
    steps = [line.split(" rl ")[1].split("/")[0] for line in file.getvalue().splitlines()[1:]]
    assert steps == ["25", "40", "60"]


def test_what_should_worry_is_shown_where_there_is_any():
    values = {"mfu_frac": 0.414, "max_load_frac": 1.84, "spike_score": 0.0, "skipped_steps": 0.0}
    assert figures(values | {"idle_experts": 0.0}) == ["MFU 41.4%", "busiest expert 1.8×"]
    worried = values | {"spike_score": 0.016, "skipped_steps": 2.0, "idle_experts": 3.0}
    assert figures(worried)[2:] == ["idle experts 3", "skipped 2", "spikes 1.6%"]


def test_a_stage_of_unknown_length_has_no_time_left():
    display, file, now = log()
    display.stage_started("pretrain", steps=None, done=5)
    now.now = 11.0
    display.step("pretrain", 6, {"loss": 2.0, "wall_s": 1.0, "usd": 0.1})
    assert file.getvalue().splitlines() == [
        "[0:00] pretrain: goes on after step 5",
        "[0:11] pretrain 6 · loss 2.000 · $0.10",
    ]


def test_a_live_display_ends_with_whole_bars_where_a_stage_ended_early():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with LiveDisplay(console, {}) as display:
        display.stage_started("pretrain", steps=100)
        display.step("pretrain", 30, VALUES)
        display.note("probe passed")
        display.stage_finished("pretrain")
        display.stage_started("evaluate_base", steps=None)
        display.stage_finished("evaluate_base")
        display.stopping()
    text = file.getvalue()
    assert "probe passed" in text
    assert "30/30" in text
    assert "stopping after this step" in text


@pytest.mark.parametrize("force", [True, False])
def test_what_is_no_terminal_gets_the_log_even_where_colour_is_forced(force):
    console = Console(file=io.StringIO(), force_terminal=force)
    with watch(console, {}) as display:
        assert isinstance(display, LogDisplay)


def test_clock():
    assert [clock(s) for s in (0, 61.4, 3600 + 125)] == ["0:00", "1:01", "1:02:05"]
