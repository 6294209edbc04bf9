import io
from pathlib import Path

import pytest

from nalar.cli import chat
from nalar.cli.output import Output
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import Delta
from nalar.data.tokenizer import Tokenizer
from nalar.pipeline.sampler import Sampler
from nalar.recipes.tools import zero_tools_cpu
from nalar.sandbox.config import ToolsConfig

real_load = chat._load


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


class Calling:
    """An engine that calls the calculator once, and answers what it was told."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def stream(self, request):
        text = self.tokenizer.decode(request.prompt_ids)
        output = text.partition("<tool_output>")[2].partition("<")[0]
        said = f"</think>{output}<|end|>" if output else "<tool_call>calculator 12*34</tool_call>"
        return ((i, -0.5) for i in self.tokenizer.encode(said, allow_special=True))


@pytest.mark.parametrize("with_tools", [True, False])
def test_calls_are_answered_where_the_run_has_tools(monkeypatch, tmp_path, with_tools):
    tokenizer = Tokenizer.train(["1+1"], TokenizerConfig(vocab_size=265, tools=True))
    sampler = Sampler(Calling(tokenizer), tokenizer)
    monkeypatch.setattr("nalar.pipeline.sampler.load_sampler", lambda folder, config: sampler)
    config = zero_tools_cpu().model_copy(update={} if with_tools else {"tools": ToolsConfig()})
    speaker = real_load(tmp_path, config, chat.Chat(model="x"), 96)
    *deltas, reply = speaker("What is 12*34?", 0)
    assert "".join(d.call for d in deltas) == "calculator 12*34"
    assert "".join(d.output for d in deltas) == reply.answer == ("408" if with_tools else "")
    want = {"name": "calculator", "arguments": "12*34", "output": "408" if with_tools else None}
    assert (reply.calls, reply.finish_reason) == ([want], "stop")
    out = Output(json=False)
    assert chat.say(speaker, "What is 12*34?", 0, out) == reply


def test_a_call_and_its_output_are_shown(nalar_, monkeypatch):
    def load(*_):
        def speak(prompt, seed):
            yield from (Delta(call="calculator 1+1"), Delta(output="2"), Delta(answer="2"))
            yield chat.Reply(prompt="p", thought="", answer="2", finish_reason="stop", tokens=3)

        return speak

    monkeypatch.setattr(chat, "_load", load)
    assert "calculator 1+1 = 2\n→ 2" in nalar_("chat", "x", "--prompt", "p").out


@pytest.mark.parametrize(
    ("words", "got"), [(("-1",), "-1"), (("8", "--no-thinking"), "8 with --no-thinking")]
)
def test_a_budget_that_cannot_be_is_refused(nalar_, words, got):
    found = nalar_("chat", "x", "--prompt", "p", "--thinking-budget", *words, "--json")
    error = found.document["error"]
    assert (found.code, error["at"], error["got"]) == (2, "--thinking-budget", got)
