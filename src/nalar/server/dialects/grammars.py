"""What calls and answers may look like, in each family's own form, for data/grammar.py: Grammars. Imports no torch."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nalar.config import UserError, lookup
from nalar.server.ask import GrammarSpec, ResponseFormat, ToolChoice, ToolSpec
from nalar.server.dialects.json_arguments import only_string
from nalar.server.dialects.mark_table import MarkTable, Role
from nalar.server.dialects.marks import CallMarks

MAX_SCHEMA_CHARS = 2**16
"""Of all schemas of one request, as JSON."""
_BLANKS = "[ \\n]{0,24}"
"""Between the signs of JSON: enough to indent, and no way to write blanks without end."""
_MAX_NAMES = 4
"""Of tools, in errors."""
_PLAIN_STRING = {"type", "title", "description", "default", "examples"}
"""Keywords of a schema that any text meets."""


def grammar_of(
    table: MarkTable,
    tools: Sequence[ToolSpec],
    choice: ToolChoice,
    response_format: ResponseFormat,
    *,
    parallel: bool,
) -> GrammarSpec | None:
    """What holds behind the thought; None: anything.

    Calls that must come, come by their tool's schema; that of a tool which is not strict may hold keywords that
    llguidance does not know. Calls that may come are held to it where a tool is strict and calls have ids of their own:
    where their marks are text, free text could spell them. parallel: False: one call at most. Where thoughts have no
    ids, a thought may come first. UserError for a choice that the tools do not allow, and for schemas that are too
    long; what they cost is found out where they are compiled.
    """
    chosen = _chosen(tools, choice)
    must_call = choice.mode in ("required", "named")
    schema = None if must_call else _schema(response_format)
    may_call = bool(chosen) and (must_call or schema is not None or _holds(table, chosen))
    if schema is None and not may_call:
        return None
    callable_tools = chosen if may_call else []
    about = _about(callable_tools, with_format=schema is not None)
    _check_size(
        [*([] if schema is None else [schema]), *(t.parameters for t in callable_tools)], about
    )
    if not may_call and not _may_come_first(table) and schema is not None:
        return GrammarSpec("json_schema", json.dumps(schema, ensure_ascii=False), about)
    rules = _Rules(table)
    ways = []
    if may_call:
        ways.append(rules.calls(chosen, parallel=parallel))
    if schema is not None:
        ways.append(rules.json(schema))
    elif not must_call:
        text = rules.add("/(.|\\n)*/")
        ways = [f"{text} {ways[0]}?"]
    return GrammarSpec("lark", rules.text(" | ".join(ways)), about)


def _about(tools: Sequence[ToolSpec], *, with_format: bool) -> str:
    """What of a request a grammar follows from."""
    names = [tool.name for tool in tools[:_MAX_NAMES]] + ["..."] * (len(tools) > _MAX_NAMES)
    parts = ["response_format"] * with_format + [f"tools ({', '.join(names)})"] * bool(tools)
    return " and ".join(parts)


def _check_size(schemas: Sequence[Mapping[str, Any]], about: str) -> None:
    size = sum(len(json.dumps(schema, ensure_ascii=False)) for schema in schemas)
    if size > MAX_SCHEMA_CHARS:
        got = f"schemas of {size} characters"
        raise UserError(at=about, got=got, want=f"{MAX_SCHEMA_CHARS} at most, in all")


def _chosen(tools: Sequence[ToolSpec], choice: ToolChoice) -> list[ToolSpec]:
    if choice.mode == "none":
        return []
    if choice.mode == "named":
        return [lookup(choice.name or "", {tool.name: tool for tool in tools}, at="tool_choice")]
    if choice.mode == "required" and not tools:
        raise UserError(
            at="tool_choice", got="required, without tools", want="tools to choose from"
        )
    return list(tools)


def _schema(response_format: ResponseFormat) -> dict[str, Any] | None:
    if response_format.kind == "text":
        return None
    schema = response_format.schema if response_format.kind == "json_schema" else None
    return _with_blanks({"type": "object"} if schema is None else schema, lenient=False)


def _with_blanks(schema: Mapping[str, Any], *, lenient: bool) -> dict[str, Any]:
    return {**schema, "x-guidance": {"whitespace_pattern": _BLANKS, "lenient": lenient}}


def _holds(table: MarkTable, tools: Sequence[ToolSpec]) -> bool:
    begins = table.id_of("section") or table.id_of("call")
    return any(tool.strict for tool in tools) and begins is not None


def _may_come_first(table: MarkTable) -> bool:
    """Whether the grammar has to make room for something before the answer."""
    return bool(table.family.padding) or "think" in table.of_text.values()


class _Rules:
    """A grammar in Lark's form, rule by rule."""

    def __init__(self, table: MarkTable) -> None:
        self._table, self._family = table, table.family
        self._rules: list[str] = []

    def add(self, body: str, attributes: str = "") -> str:
        """Name of a new rule."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def text(self, ways: str) -> str:
        before, behind = self._before(), self._dropped()
        return "\n".join([f"start: {before} ({ways}) {behind}".rstrip(), *self._rules])

    def json(self, schema: Mapping[str, Any]) -> str:
        return self.add(f"%json {json.dumps(schema, ensure_ascii=False)}")

    def _before(self) -> str:
        """A thought, where it has no ids, and padding."""
        parts = []
        if "think" in self._table.of_text.values():
            # One terminal with its end: terminals are read as far as they go.
            ends = "|".join(map(re.escape, self._family.end_think)).replace("/", "\\/")
            self._rules.append(f"THOUGHT: /(.|\\n)*({ends})/ & ~/(.|\\n)*({ends})(.|\\n)+/")
            begin = " | ".join(map(_literal, self._family.think))
            parts.append(f"{self.add(f'({begin}) THOUGHT')}?")
        padding = f"/{self._family.padding.encode('unicode_escape').decode()}{{0,2}}/"
        if self._family.padding:
            parts.append(padding)
        if self._family.dropped:
            parts += [self._dropped(), padding]
        return " ".join(filter(None, parts))

    def _dropped(self) -> str:
        """Marks that say nothing, which models were trained to write."""
        texts = [mark for mark, role in self._table.of_text.items() if role == "drop"]
        return f"({' | '.join(map(_literal, texts))})?" if texts else ""

    def _mark(self, text: str, role: Role) -> str:
        token_id = self._table.id_of(role)
        return _literal(text) if token_id is None else f"<[{token_id}]>"

    def calls(self, tools: Sequence[ToolSpec], *, parallel: bool) -> str:
        marks = self._family.calls
        if marks is None:
            raise UserError(
                at="tools",
                got="a model whose chat template has no calls that are known",
                want="no tools, or a model of a family in docs/dialects.md",
            )
        bodies = " | ".join(self._body(marks, tool) for tool in tools)
        if marks.form == "list":
            more = f' (", " ({bodies}))*' if parallel else ""
            return self.add(f'{self._mark(marks.begin, "call")} "[" ({bodies}){more} "]"')
        call = self.add(
            f"{self._mark(marks.begin, 'call')} ({bodies}) {self._mark(marks.end, 'end_call')}"
        )
        several = f"{call} (/\\n?/ {call})*" if parallel else call
        if marks.section is None:
            return self.add(several)
        begin = self._mark(marks.section[0], "section")
        return self.add(f"{begin} {several} {self._mark(marks.section[1], 'end_section')}")

    def _body(self, marks: CallMarks, tool: ToolSpec) -> str:
        """What stands between the marks of a call."""
        name = json.dumps(tool.name, ensure_ascii=False)
        if marks.form == "xml":
            return self.add(self._xml(tool))
        arguments = self.json(_with_blanks(_object(tool.parameters), lenient=not tool.strict))
        match marks.form:
            case "bare":
                if _is_free(tool.parameters):
                    arguments = self.add(f"/[^{{ \\t\\r\\n](.|\\n)*/ | {arguments}")
                return self.add(f"{_literal(tool.name + marks.separator)} {arguments}")
            case "object" | "list":
                pad = "/\\n?/" if marks.form == "object" else ""
                head = _literal(f'{{"name": {name}, "arguments": ')
                return self.add(f'{pad} {head} {arguments} "}}" {pad}'.strip())
            case "name":
                return self.add(self._named(marks, tool.name, arguments))
        raise AssertionError(marks.form)

    def _named(self, marks: CallMarks, name: str, arguments: str) -> str:
        header = [_literal(name)]
        if self._family.call_id == "kimi":
            header = [_literal(f"functions.{name}:"), "/[0-9]{1,4}/"]
        parts = [*self._inner(marks.prefix), *header, *self._inner(marks.separator), arguments]
        return " ".join([*parts, *([_literal(marks.trailer)] if marks.trailer else [])])

    def _inner(self, text: str) -> list[str]:
        """A text that may hold marks with ids of their own."""
        if not text:
            return []
        for token_id, mark in self._table.inner.items():
            before, found, behind = text.partition(mark)
            if found:
                return [*self._inner(before), f"<[{token_id}]>", *self._inner(behind)]
        return [_literal(text)]

    def _xml(self, tool: ToolSpec) -> str:
        """Arguments in the order of the schema; those that are not required may be left out."""
        schema = _object(tool.parameters)
        required = schema.get("required")
        parts = [f"/\\n?/ {_literal(f'<function={tool.name}>')} /\\n?/"]
        for key, about in schema["properties"].items():
            value = self._xml_value(about if isinstance(about, Mapping) else {}, tool)
            one = self.add(f"{_literal(f'<parameter={key}>' + chr(10))} {value}")
            is_required = isinstance(required, list) and key in required
            parts.append(one if is_required else f"{one}?")
        return " ".join([*parts, '"</function>"', "/\\n?/"])

    def _xml_value(self, schema: Mapping[str, Any], tool: ToolSpec) -> str:
        end = _literal("\n</parameter>\n")
        if schema.get("type", "string") != "string" or "enum" in schema:
            options = schema.get("enum")
            if schema.get("type") == "string" and isinstance(options, list):
                texts = [_literal(one) for one in options if isinstance(one, str) and one]
                return f"({' | '.join(texts)}) {end}"
            value = self.json(_with_blanks(schema, lenient=not tool.strict))
            return f"{value} {end}"
        return self.add("/(.|\\n)*/", f"[suffix={end}]")


def _literal(text: str) -> str:
    return json.dumps(text)


def _object(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of an object, whatever was given."""
    properties = parameters.get("properties")
    properties = dict(properties) if isinstance(properties, Mapping) else {}
    return {**parameters, "type": "object", "properties": properties}


def _is_free(parameters: Mapping[str, Any]) -> bool:
    """Whether any text will do for the one argument."""
    key = only_string(parameters)
    return key is not None and parameters["properties"][key].keys() <= _PLAIN_STRING
