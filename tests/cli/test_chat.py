import io
import json
import re
from pathlib import Path

import pytest

from nalar.agent.loop import Loop
from nalar.agent.speech import Asked, Call, Piece, Turn, Usage
from nalar.cli import chat
from nalar.cli.chat_input import next_prompt
from nalar.cli.chat_local import LocalSpeaker
from nalar.cli.chat_screen import Screen
from nalar.cli.chat_session import CHAT_LIMITS, Session
from nalar.cli.output import Output
from nalar.cli.prices import price_table
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import parse
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import Completion, Event
from nalar.pipeline.sampler import Sampler
from nalar.recipes.tools import zero_tools_cpu
from nalar.sandbox.answering import Answering
from nalar.sandbox.config import ToolsConfig
from nalar.sandbox.tools import Calculator


class Fake:
    """Thinks, answers, and keeps what it was asked."""

    def __init__(self):
        self.seen = []
        self.stops = False

    def say(self, messages, asked):
        self.seen.append((list(messages), asked))
        thought = "" if asked.thinking is False else "8-3=5✗"
        if thought:
            yield Piece("thought", "8-3=5")
            yield Piece("thought", "✗")
        yield Piece("answer", "\x1b[31m24")
        if self.stops:
            raise KeyboardInterrupt
        yield Turn(thought, "24", (), "stop", Usage(8, 2, asked.seed, 0))


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    speaker = Fake()
    monkeypatch.setattr(LocalSpeaker, "load", lambda *_, **__: speaker)
    monkeypatch.setattr(chat, "chosen_model", lambda name: (Path(name), None))
    monkeypatch.setattr(chat, "is_pasted", lambda: False)
    return speaker


@pytest.fixture
def typed(monkeypatch, nalar_):
    """Call `nalar chat` as at a terminal, with these lines (or an exception to raise) typed."""

    def call(*lines, flags=()):
        left = iter(lines)

        def read(mark):
            line = next(left, None)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr(chat, "terminal_reader", lambda: read)
        monkeypatch.setattr("sys.stdin", io.StringIO())
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        return nalar_("chat", "x", *flags)

    return call


def test_one_prompt_gives_thought_and_answer_apart(nalar_):
    called = nalar_("chat", "x", "--prompt", "make 24 from 3 8 9")
    assert called.code == 0
    assert "8-3=5✗\n→ " in called.out


def test_a_model_cannot_send_control_codes_to_the_terminal(nalar_):
    assert "\x1b" not in nalar_("chat", "x", "--prompt", "p").out


def test_json_holds_the_reply_and_the_stream_goes_to_stderr(nalar_):
    called = nalar_(
        "chat", "x", "--prompt", "p", "--json", "--seed", "4", "--prices", "1", "0.5", "2"
    )
    assert called.document["thought"] == "8-3=5✗"
    assert called.document["tokens"] == 4
    assert called.document["cost_usd"] == pytest.approx((6 * 1 + 2 * 0.5 + 4 * 2) / 1e6)
    assert "8-3=5✗" in called.err


def test_without_thinking_there_is_no_arrow(nalar_):
    assert "→" not in nalar_("chat", "x", "--prompt", "p", "--no-thinking").out


def test_without_a_terminal_each_line_is_a_prompt(nalar_, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert nalar_("chat", "x").out.count("→") == 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--temperature", "-1"],
        ["--max-tokens", "0"],
        ["--max-calls", "0"],
        ["--prompt", "  "],
        ["--tools", "calculator,bash"],
        ["--prices", "1", "2", "-1"],
        ["--url", "ftp://x"],
        ["--api-key", "k"],
    ],
)
def test_bad_settings_are_refused(flags, nalar_):
    assert nalar_("chat", "x", "--prompt", "p", *flags).code == 2


@pytest.mark.parametrize(
    ("words", "got"), [(("-1",), "-1"), (("8", "--no-thinking"), "8 with --no-thinking")]
)
def test_a_budget_that_cannot_be_is_refused(nalar_, words, got):
    found = nalar_("chat", "x", "--prompt", "p", "--thinking-budget", *words, "--json")
    error = found.document["error"]
    assert (found.code, error["at"], error["got"]) == (2, "--thinking-budget", got)


def test_neither_model_nor_server_is_refused(nalar_):
    assert "nalar runs list" in nalar_("chat", "--prompt", "p").err


def test_the_model_sees_what_was_said_without_its_old_thoughts(typed, fake):
    typed("one", "two", "/new", "three", "/history off", "four")
    texts = [[message["content"] for message in messages] for messages, _ in fake.seen]
    assert texts == [["one"], ["one", "24", "two"], ["three"], ["four"]]
    assert not any("reasoning_content" in message for message in fake.seen[1][0])
    assert [asked.seed for _, asked in fake.seen] == [0, 1, 2, 3]


def test_a_run_of_single_prompts_has_no_history_unless_asked(typed, fake, monkeypatch):
    monkeypatch.setattr(chat, "chosen_model", lambda name: (Path(name), zero_tools_cpu()))
    typed("one", "two")
    typed("one", "two", flags=["--history", "True"])
    assert [len(messages) for messages, _ in fake.seen] == [1, 1, 1, 3]
    assert fake.seen[0][1].max_tokens == 96
    assert list(fake.seen[0][1].tools) == ["calculator"]


def test_commands_change_how_the_next_reply_is_asked_for(typed, fake):
    typed("/thinking 8", "/temperature 0.5", "/max_tokens 9", "/seed 5", "/system be brief", "p")
    messages, asked = fake.seen[0]
    assert asked == Asked(True, 8, 0.5, 9, 5, {})
    assert messages[0] == {"role": "system", "content": "be brief"}
    typed(
        "/thinking off",
        "/tools calculator",
        "p",
        "/tools off",
        "/max_tokens off",
        "//etc",
        "/etc/x",
    )
    assert [list(asked.tools) for _, asked in fake.seen[1:]] == [["calculator"], [], []]
    assert fake.seen[1][1].thinking is False
    assert [messages[-1]["content"] for messages, _ in fake.seen[2:]] == ["/etc", "/etc/x"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/thinkin on", "/thinking"),
        ("/temperature hot", "0 (greedy) or more"),
        ("/tools bash", "some of calculator, python"),
        ("/retry", "no question yet"),
        ("/load nope.json", "a file that /save wrote"),
        ("/save", "/save chat.json"),
        ("/new now", "nothing behind it"),
        ("/seed -1", "a whole number"),
        ("/help", "/max_tokens N|off"),
        ("/usage", "0 replies"),
    ],
)
def test_commands_say_what_is_wrong_and_the_chat_goes_on(typed, fake, line, says):
    called = typed(line, "p", "/quit", "not asked")
    assert says in called.out
    assert (called.code, len(fake.seen)) == (0, 1)


def test_retry_asks_the_latest_question_by_another_seed(typed, fake):
    typed("one", "two", "/retry")
    (two, first), (again, second) = fake.seen[1:]
    assert two == again
    assert first.seed != second.seed


def test_what_is_saved_is_gone_on_from(typed, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed("/system be brief", "one", "/save a.json", "/new", "/load a.json", "two")
    assert [m["content"] for m in fake.seen[1][0]] == ["be brief", "one", "24", "two"]
    assert json.loads(Path("a.json").read_text())["messages"][1]["reasoning_content"] == "8-3=5✗"
    Path("own.txt").write_text("mine")
    assert "a file that /save wrote" in typed("/save own.txt").out
    assert Path("own.txt").read_text() == "mine"


def test_an_interrupt_stops_the_reply_and_keeps_the_chat(typed, fake):
    fake.stops = True
    called = typed("one", KeyboardInterrupt, "two", KeyboardInterrupt, KeyboardInterrupt, "three")
    assert called.code == 130
    assert called.out.count("[stopped]") == 2
    assert [m["content"] for m in fake.seen[1][0]] == ["one", "\x1b[31m24", "two"]


def read_of(*lines):
    left = iter(lines)
    return lambda mark: next(left, None)


@pytest.mark.parametrize(
    ("lines", "prompt"),
    [
        (("a",), "a"),
        (("a \\", "b"), "a \nb"),
        (('"""a', "", 'b"""', "c"), "a\n\nb"),
        (('"""', "a", '"""'), "a"),
        (('"""one line"""',), "one line"),
        (('"""never ended', "b"), "never ended\nb"),
        (("a\\",), "a"),
        ((), None),
    ],
)
def test_prompts_of_several_lines(lines, prompt):
    assert next_prompt(read_of(*lines), lambda: False) == prompt


def test_what_is_pasted_is_one_prompt():
    more = iter([True, True, False])
    assert next_prompt(read_of("a", "b", "c", "d"), lambda: next(more)) == "a\nb\nc"


class Calls(Fake):
    """Calls the calculator so often at once, then answers."""

    def __init__(self, calls):
        super().__init__()
        self.calls = (Call("c", "calculator", "1+1"),) * calls

    def say(self, messages, asked):
        done = messages[-1]["role"] == "tool"
        if done:
            yield Piece("answer", "2")
        for _ in () if done else self.calls:
            yield from (Piece("call", "calculator"), Piece("arguments", "1+1"))
        calls = () if done else self.calls
        yield Turn("", "2" if done else "", calls, "stop", Usage(5, 2, 3, 1))


def test_a_limit_of_calls_holds_for_tools_that_are_named_later(typed, monkeypatch):
    monkeypatch.setattr(LocalSpeaker, "load", lambda *_, **__: Calls(2))
    called = typed("/tools calculator", "p", flags=["--max-calls", "1"])
    assert "1+1 = 2\n = error: no more than 1 calls\n→ 2" in called.out


def test_calls_and_what_a_reply_took_are_shown(capsys):
    screen = Screen(Output(json=False), prices=price_table((1, 1, 1)), with_footer=True)
    tools = {"calculator": Calculator()}
    session = Session(
        Calls(1),
        screen,
        Asked(),
        tools=tools,
        limits=CHAT_LIMITS,
        seed=0,
        keeps_history=True,
        name="m",
    )
    session.ask("1+1")
    shown = capsys.readouterr().out
    assert (
        "calculator 1+1 = 2\n→ 2\n6 tokens, 2 of them thought · 1 call · read 10 (4 cached)"
        in shown
    )
    assert "0.000016 USD" in shown


class Calling:
    """An engine that calls the calculator as often as the prompt asks, each time with the output before it."""

    def __init__(self, tokenizer, calls):
        self.tokenizer, self.calls, self.prompts, self.aborted = tokenizer, calls, [], []
        self.config = type("Config", (), {"max_model_len": 4096})

    def add(self, request):
        self.prompts.append(request.prompt_ids)
        return len(self.prompts)

    def abort(self, request_id):
        self.aborted.append(request_id)

    def step(self):
        text = self.tokenizer.decode(self.prompts[-1])
        outputs = text.split("<tool_output>")[1:]
        value = outputs[-1].partition("<")[0] if outputs else "1"
        said = f"so <tool_call>calculator {value}+{value}</tool_call>"
        if len(outputs) == self.calls:
            said = f"</think>{value}<|end|>"
        # Digit by digit, where the tokenizer would take one id for many: what was drawn must come back as it was.
        ids = [i for sign in _signs(said) for i in self.tokenizer.encode(sign, allow_special=True)]
        done = Completion(tuple(ids), (0.0,) * len(ids), "stop", 0)
        return [Event(len(self.prompts), 0, tuple(ids), done.logprobs, done)]


def _signs(text):
    return re.findall(r"</?tool_call>|</think>|<\|end\|>|.", text)


def local(calls=1):
    tokenizer = Tokenizer.train(
        ["calculator so ", "calculator so "] * 9, TokenizerConfig(vocab_size=275, tools=True)
    )
    engine = Calling(tokenizer, calls)
    return engine, LocalSpeaker(Sampler(engine, tokenizer))


def test_fifty_calls_of_a_model_here_go_on_from_the_very_ids_it_drew():
    engine, speaker = local(calls=50)
    tools, limits = {"calculator": Calculator()}, ToolsConfig(max_calls=50, output_chars=10_000)
    loop = Loop(speaker, [{"role": "user", "content": "go"}], Asked(), Answering(tools, limits))
    *_, said = loop.run()
    assert (said.answer, len(said.calls), said.thought) == (str(2**50), 50, "so " * 50)
    for earlier, later in zip(engine.prompts, engine.prompts[1:], strict=False):
        assert later[: len(earlier)] == earlier
    behind = engine.prompts[-1][len(engine.prompts[0]) :]
    read = parse(engine.tokenizer, behind)
    assert [call.output for call in read.calls] == [str(2**n) for n in range(1, 51)]
    assert engine.tokenizer.encode("so calculator")[0] not in behind  # no merge that was not drawn


def test_without_tools_a_call_ends_the_reply():
    _, speaker = local()
    question = {"role": "user", "content": "1+1"}
    loop = Loop(speaker, [question], Asked(), Answering({}, ToolsConfig()))
    *_, said = loop.run()
    assert (said.finish_reason, said.calls[0][1]) == ("tool_calls", None)
    assert loop.said == [{"role": "assistant", "content": "", "reasoning_content": "so "}]


def test_a_reply_that_is_stopped_leaves_the_engine():
    engine, speaker = local()
    pieces = speaker.say([{"role": "user", "content": "1+1"}], Asked())
    next(pieces)
    pieces.close()
    assert engine.aborted == [1]
