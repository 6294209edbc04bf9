"""Whatever is drawn under a family's grammar is what was asked for."""

import json
import random

import pytest

from nalar.config import UserError
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.server.ask import ResponseFormat, ToolChoice, ToolSpec
from nalar.server.dialects.dialect import Dialect
from nalar.server.dialects.reader import Prompt

FAMILIES = (
    "nalar",
    "qwen3",
    "qwen3-coder",
    "granite-3.2",
    "granite-3.3",
    "granite-4",
    "deepseek-r1",
    "deepseek-v3.1",
    "kimi-k2",
    "deepseek-r1-text",
    "qwen3-text",
)
BOOK = ToolSpec(
    "book",
    "",
    {
        "type": "object",
        "properties": {
            "city": {"enum": ["Oslo", 'a"b\n思'], "type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 30},
            "more": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    strict=True,
)
SAY = ToolSpec(
    "say",
    "",
    {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
        "additionalProperties": False,
        "unheard-of": 1,
    },
)
SCHEMA = {
    "type": "object",
    "properties": {"right": {"type": "boolean"}},
    "required": ["right"],
    "additionalProperties": False,
}
TEXT, AUTO, REQUIRED = ResponseFormat("text"), ToolChoice("auto"), ToolChoice("required")
OWN = Dialect.of_own(
    Tokenizer.train(['{"city": "Oslo"} book say'] * 9, TokenizerConfig(vocab_size=300, tools=True))
)


@pytest.fixture(scope="module")
def compiled(dialect_of):
    grammar = pytest.importorskip("nalar.data.grammar")
    pytest.importorskip("llguidance")
    made = {}

    def get(name, tools, choice=AUTO, form=TEXT, parallel=True):
        dialect = OWN if name == "nalar" else dialect_of(name)
        grammars = made.setdefault(name, grammar.Grammars(dialect.tokenizer))
        spec = dialect.grammar(tools, choice, form, parallel)
        text = json.loads(spec.text) if spec.kind == "json_schema" else spec.text
        return dialect, getattr(grammars, spec.kind)(text)

    return get


def draw(dialect, make, seed, endings=()):
    """Uniformly among what is allowed, but for endings, which are tried now and then: chance would not find them."""
    rng, state, ids, plan = random.Random(seed), make(), [], []
    for _ in range(6000):
        mask = state.allowed()
        allowed = [i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1]
        if not plan and endings and rng.random() < 0.05:
            plan = dialect.tokenizer.encode(rng.choice(endings))
        ids.append(plan.pop(0) if plan and plan[0] in allowed else rng.choice(allowed))
        plan = plan if plan and ids else []
        state.accept(ids[-1])
        if ids[-1] in dialect.stop_ids:
            return ids
    raise AssertionError("no end")


def read(dialect, fold, ids, tools, may_think=False):
    prompt = Prompt((), opens_thought=False, may_think=may_think, tools=tuple(tools))
    one = dialect.reader(prompt, with_tools=bool(tools))
    return fold([*one.feed(ids), *one.finish(cut=False)])


ENDINGS = ("\n</parameter>\n", "</think>", "Here is my response:", "Here's my response:")


def is_booking(arguments):
    found = json.loads(arguments)
    return (
        {"city", "days"} <= set(found) <= {"city", "days", "more"}
        and found["city"] in BOOK.parameters["properties"]["city"]["enum"]
        and 1 <= found["days"] <= 30
        and isinstance(found["days"], int)
        and all(isinstance(one, bool) for one in found.get("more", []))
        and len(found.get("more", [])) <= 2
    )


def is_saying(arguments):
    found = json.loads(arguments)
    return set(found) == {"text"} and isinstance(found["text"], str)


FITS = {"book": is_booking, "say": is_saying}


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_that_must_come_come_by_their_schemas(compiled, fold, name):
    dialect, make = compiled(name, [BOOK, SAY], REQUIRED)
    used, most = set(), 0
    for seed in range(12):
        ids = draw(dialect, make, seed, ENDINGS)
        thought, answer, calls, _ = read(dialect, fold, ids, [BOOK, SAY], may_think=True)
        assert calls and answer == "" and (not thought or name.startswith(("granite-3", "qwen3")))
        for called, arguments, ended in calls:
            assert ended and FITS[called](arguments)
        used |= {call[0] for call in calls}
        most = max(most, len(calls))
    assert used == {"book", "say"} and (most > 1 or name == "nalar")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_named_tool_is_called_once(compiled, fold, name):
    dialect, make = compiled(name, [BOOK, SAY], ToolChoice("named", "book"), parallel=False)
    for seed in range(6):
        ids = draw(dialect, make, seed, ENDINGS)
        (call,) = read(dialect, fold, ids, [BOOK, SAY], may_think=True)[2]
        assert call[0] == "book" and is_booking(call[1])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tools", [(), (BOOK,)])
def test_an_answer_in_json_is_what_its_schema_says(compiled, fold, name, tools):
    dialect, make = compiled(name, tools, AUTO, ResponseFormat("json_schema", SCHEMA))
    kinds = set()
    for seed in range(10):
        ids = draw(dialect, make, seed, ENDINGS)
        _, answer, calls, _ = read(dialect, fold, ids, tools, may_think=True)
        assert bool(answer) != bool(calls)
        kinds.add(bool(calls))
        if answer:
            assert set(json.loads(answer)) == {"right"}
        assert all(is_booking(arguments) for _, arguments, _ in calls)
    assert kinds == {False, bool(tools)} or kinds == {False, True}


@pytest.mark.parametrize("name", ["nalar", "qwen3", "kimi-k2", "granite-3.3"])
def test_with_a_strict_tool_text_is_free_and_calls_are_not(compiled, fold, name):
    dialect, make = compiled(name, [BOOK], AUTO)
    begins = dialect.table.id_of("section") or dialect.table.id_of("call")
    num_calls = 0
    for seed in range(10):
        rng, state, ids = random.Random(seed), make(), []
        while not ids or ids[-1] not in dialect.stop_ids:
            mask = state.allowed()
            allowed = [i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1]
            likes = begins in allowed and rng.random() < 0.1
            ids.append(begins if likes else rng.choice(allowed))
            state.accept(ids[-1])
        calls = read(dialect, fold, ids, [BOOK])[2]
        assert all(is_booking(arguments) for _, arguments, _ in calls)
        num_calls += len(calls)
    assert num_calls


def test_nothing_is_held_where_nothing_was_asked(dialect_of):
    assert OWN.grammar([SAY], AUTO, TEXT) is None
    assert OWN.grammar([BOOK], ToolChoice("none"), TEXT) is None
    # Free text could spell marks that are text.
    assert dialect_of("qwen3-text").grammar([BOOK], AUTO, TEXT) is None


def test_any_object_will_do_where_no_schema_is_given(compiled, fold):
    dialect, make = compiled("nalar", (), AUTO, ResponseFormat("json_object"))
    for seed in range(5):
        answer = read(dialect, fold, draw(dialect, make, seed, ("}", '"}')), ())[1]
        assert isinstance(json.loads(answer), dict)


@pytest.mark.parametrize(
    ("tools", "choice", "why"),
    [
        ([], REQUIRED, "without tools"),
        ([BOOK], ToolChoice("named", "bok"), "did you mean 'book'"),
        ([], ToolChoice("named", "book"), "tool_choice"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(tools, choice, why):
    with pytest.raises(UserError, match=why):
        OWN.grammar(tools, choice, TEXT)
