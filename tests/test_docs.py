"""The documents say what the code does: links lead somewhere, commands parse, tables hold what the code computes."""

import contextlib
import io
import json
import random
import re
import shlex
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from nalar.cli.main import VERBS, main
from nalar.data.corpora.procedural import KINDS
from nalar.data.corpora.sources import sources
from nalar.plan.model import count_parameters
from nalar.recipes.registry import RECIPES
from nalar.tasks.registry import FAMILIES

ROOT = Path(__file__).parent.parent
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCS]
ZERO = ROOT / "docs" / "zero.md"

FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
INLINE = re.compile(r"`([^`\n]+)`")
PLACEHOLDER = re.compile(r"⟦[^⟧]*⟧?")
SETTING = re.compile(r"^\| `([a-z_]+(?:\.[a-z_0-9]+)+)` \| ([^|]+) \|", re.MULTILINE)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return FENCE.findall(text)


def shown_commands(text: str) -> Iterator[str]:
    """Every `nalar ...` of a line in a block, or of a piece of inline code, that is meant to be typed."""
    lines = [line.strip() for block in blocks(text) for line in block.splitlines()]
    for shown in [*lines, *INLINE.findall(FENCE.sub("", text))]:
        # Capitals (VERB, RUN) and dots (...) stand for something else.
        if re.match(r"nalar( |$)", shown) and not re.search(r"\b[A-Z]{3,}\b|\.\.\.|…", shown):
            yield shown


@lru_cache(maxsize=32)
def help_of(verb: str) -> str:
    """All that `nalar VERB --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    return printed.getvalue()


def objection(command: str) -> str | None:
    """Why this command cannot be typed so; None where it can."""
    words = shlex.split(command)[1:]
    if not words or words[0] in ("--help", "--version"):
        return None
    if words[0] not in VERBS:
        return f"{words[0]!r} is no verb"
    known = help_of(
        " ".join(words[:2]) if words[0] in ("runs", "keys") and len(words) > 1 else words[0]
    )
    for word in words[1:]:
        flag = word.split("=")[0]
        if flag.startswith("--") and not re.search(rf"{re.escape(flag)}(?![\w.-])", known):
            return f"`nalar {words[0]} --help` knows no {flag}"
    return None


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_to_a_file(name):
    path = ROOT / name
    targets = [t for t in LINK.findall(FENCE.sub("", text_of(path))) if "://" not in t]
    assert [t for t in targets if not (path.parent / t).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_shown_is_one_that_nalar_knows(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    commands = sorted(set(shown_commands(text_of(ROOT / name))))
    assert [f"{c}: {reason}" for c in commands if (reason := objection(c))] == []


def test_every_command_in_the_help_is_one_that_nalar_knows(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = "\n".join(
        help_of(verb)
        for verb in [
            *("", *VERBS),
            *("runs list", "runs show", "runs compare", "runs plot"),
            *("keys create", "keys list", "keys revoke"),
        ]
    )
    commands = {c.strip() for c in re.findall(r"^(?:Try.*?:)?\s*(nalar .+)$", text, re.MULTILINE)}
    assert len(commands) >= len(VERBS)
    assert [f"{c}: {reason}" for c in sorted(commands) if (reason := objection(c))] == []


def test_the_check_of_commands_sees_what_it_should(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert objection("nalar demo --rl.steps 3") is None
    assert objection("nalar runs show zero-cpu-1 --json") is None
    assert objection("nalar domo") is not None
    assert objection("nalar demo --rl.step 3") is not None
    assert list(
        shown_commands("`nalar chat x` and `nalar VERB --help` and\n```\nnalar runs\n```\n")
    ) == [
        "nalar runs",
        "nalar chat x",
    ]


TAKEN: set[str] = set()
"""Commands that have been tried: both READMEs and several pages show the same ones."""


@pytest.mark.parametrize("name", NAMES)
def test_commands_that_start_or_plan_a_run_take_their_flags(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in sorted(set(shown_commands(text_of(ROOT / name)))):
        verb, *flags = shlex.split(command)[1:] or ["doctor"]
        if verb not in ("demo", "pretrain", "plan") or {"--help", "--resume"} & {*flags}:
            continue
        if command in TAKEN:
            continue
        dry = [] if verb == "plan" or "--dry-run" in flags else ["--dry-run"]
        assert main([verb, *flags, *dry]) == 0, f"{command}\n{capsys.readouterr().err}"
        TAKEN.add(command)
    assert list(tmp_path.iterdir()) == []


def test_every_verb_is_documented():
    for name in ("README.md", "README.id.md", "docs/verbs.md"):
        text = text_of(ROOT / name)
        assert [verb for verb in VERBS if f"nalar {verb}" not in text] == [], name
    headings = re.findall(r"^## (\w+)$", text_of(ROOT / "docs" / "verbs.md"), re.MULTILINE)
    assert set(VERBS) <= set(headings)


def test_both_readmes_have_the_same_shape():
    english, indonesian = (text_of(ROOT / name) for name in ("README.md", "README.id.md"))
    levels = [
        re.findall(r"^(#+) ", FENCE.sub("", text), re.MULTILINE) for text in (english, indonesian)
    ]
    assert levels[0] == levels[1]
    assert blocks(english) == blocks(indonesian)
    tables = [len(re.findall(r"^\|", text, re.MULTILINE)) for text in (english, indonesian)]
    assert tables[0] == tables[1]
    assert sorted(PLACEHOLDER.findall(english)) == sorted(PLACEHOLDER.findall(indonesian))
    assert sorted(LINK.findall(english)) == sorted(LINK.findall(indonesian))


@pytest.mark.parametrize("name", NAMES)
def test_no_placeholder_is_left(name):
    assert sorted(set(PLACEHOLDER.findall(text_of(ROOT / name)))) == []


def test_the_settings_in_the_documents_are_those_of_the_recipe():
    settings = SETTING.findall(text_of(ZERO))
    assert len(settings) > 40
    config = RECIPES["zero-cpu"]().model_dump(mode="json")
    wrong = []
    for path, shown in settings:
        value: Any = config
        for part in path.split("."):
            value = value[part]
        if shown.strip() not in (value, json.dumps(value)):
            wrong.append(f"docs/zero.md: {path} is {json.dumps(value)}, shown as {shown.strip()}")
    assert wrong == []


def test_the_samples_in_the_documents_are_what_the_corpus_makes():
    corpus = RECIPES["zero-cpu"]().corpus
    text = text_of(ZERO)
    shown = re.findall(r"^(\w+), seed (\d+)\n", text, re.MULTILINE)
    assert {kind for kind, _ in shown} == set(KINDS)
    for kind, seed in shown:
        document = KINDS[kind](random.Random(int(seed)), corpus, sources(corpus))
        assert f"{kind}, seed {seed}\n{document}\n" in text


def test_the_parameters_in_the_documents_are_those_of_the_model():
    count = count_parameters(RECIPES["zero-cpu"]().model)
    rows = re.findall(
        r"^\| (.+?) \| \**([\d,]+)\** \| \**([\d,]+)\** \|$", text_of(ZERO), re.MULTILINE
    )
    found = [(int(every.replace(",", "")), int(used.replace(",", ""))) for _, every, used in rows]
    parts = [
        count.embedding_params,
        count.attention_params,
        count.dense_params,
        count.router_params,
        count.shared_params,
        count.routed_params,
        count.norm_params,
        count.head_params,
        count.total_params,
    ]
    used = [*parts[:5], count.routed_active_params, *parts[6:8], count.active_params]
    assert found == list(zip(parts, used, strict=True))
    for name in ("README.md", "README.id.md"):
        digits = re.sub(r"(?<=\d)[.,](?=\d{3}\b)", "", text_of(ROOT / name))
        assert str(count.total_params) in digits
        assert str(count.active_params) in digits


@pytest.mark.parametrize("name", FAMILIES)
def test_every_task_and_each_of_its_settings_is_documented(name):
    text = text_of(ROOT / "docs" / "tasks.md")
    rows = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) >= 2
    settings = rows[1]
    for field in FAMILIES[name].config.model_fields:
        assert f"`{field}`" in settings
