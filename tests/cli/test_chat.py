import io
from pathlib import Path

import pytest

from nalar.cli import chat
from nalar.data.dialogue import Delta


def fake_load(folder, config, asked, cap):
    def speak(prompt, seed):
        if asked.no_thinking:
            thought = ""
        else:
            thought = "8-3=5✗"
            yield Delta(thought="8-3=5")
            yield Delta(thought="✗")
        yield Delta(answer="\x1b[31m24")
        yield chat.Reply(
            prompt=prompt, thought=thought, answer="24", finish_reason="stop", tokens=seed
        )

    return speak


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    monkeypatch.setattr(chat, "_load", fake_load)
    monkeypatch.setattr(chat, "chosen_model", lambda name: (Path(name), None))


def test_one_prompt_gives_thought_and_answer_apart(nalar_):
    called = nalar_("chat", "x", "--prompt", "make 24 from 3 8 9")
    assert called.code == 0
    assert "8-3=5✗\n→ " in called.out


def test_a_model_cannot_send_control_codes_to_the_terminal(nalar_):
    assert "\x1b" not in nalar_("chat", "x", "--prompt", "p").out


def test_json_holds_the_reply_and_the_stream_goes_to_stderr(nalar_):
    called = nalar_("chat", "x", "--prompt", "p", "--json", "--seed", "4")
    assert called.document["thought"] == "8-3=5✗"
    assert called.document["tokens"] == 4
    assert "8-3=5✗" in called.err


def test_without_thinking_there_is_no_arrow(nalar_):
    assert "→" not in nalar_("chat", "x", "--prompt", "p", "--no-thinking").out


def test_without_a_terminal_each_line_is_a_prompt(nalar_, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert nalar_("chat", "x").out.count("→") == 2


@pytest.mark.parametrize(
    "flags", [["--temperature", "-1"], ["--max-tokens", "0"], ["--prompt", "  "]]
)
def test_bad_settings_are_refused(flags, nalar_):
    assert nalar_("chat", "x", *flags).code == 2
