"""What stands between the marks of a call: name and arguments, as soon as they are known. Imports no torch."""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from nalar.sandbox.tools import read_arguments
from nalar.server.ask import ToolSpec
from nalar.server.dialects.json_arguments import as_object, one_string, only_string
from nalar.server.dialects.json_end import JsonEnd
from nalar.server.dialects.marks import CallMarks
from nalar.server.dialects.text import Until

Part = tuple[Literal["call", "arguments", "end", "text"], str]
"""A header, a piece of the arguments' JSON, the end of a call; text that was no call."""
Tools = Mapping[str, ToolSpec]


class CallBody(Protocol):
    """Reads what one pair of marks holds; most often one call."""

    @property
    def is_inside(self) -> bool:
        """A mark spelled out here is part of a value."""
        ...

    @property
    def is_complete(self) -> bool:
        """No more is wanted: the end mark may be missing."""
        ...

    @property
    def is_over(self) -> bool:
        """It has ended without a mark."""
        ...

    def feed(self, text: str) -> tuple[list[Part], int]:
        """Parts, and how many characters at the end are not its own."""
        ...

    def close(self, *, cut: bool) -> list[Part]:
        """No more comes. Cut: and the end mark did not either; then an incomplete call has no end, and one whose name
        is not known never began."""
        ...


def body_of(marks: CallMarks, tools: Tools) -> CallBody:
    match marks.form:
        case "bare":
            return _BareBody(marks, tools)
        case "name":
            return _NamedBody(marks)
        case "xml":
            return _XmlBody(tools)
        case "object" | "list":
            return _ObjectsBody()


class _NamedBody:
    """Header, separator, arguments."""

    is_over = False

    def __init__(self, marks: CallMarks) -> None:
        self._marks = marks
        self._head = Until(marks.separator)
        self._is_named = self._is_nameless = self._has_arguments = False
        self._loose: list[str] = []
        """Arguments that are no JSON object, or of no name, kept until the end."""
        self._value = JsonEnd()

    @property
    def is_inside(self) -> bool:
        return self._value.in_string

    @property
    def is_complete(self) -> bool:
        return self._value.is_done

    def feed(self, text: str) -> tuple[list[Part], int]:
        if self._is_named:
            return self._arguments(text), 0
        found = None if self._is_nameless else self._head.feed(text)
        if found is None:
            self._loose += [text] if self._is_nameless else []
            return [], 0
        if parts := self._named(found[0]):
            return [*parts, *self._arguments(found[1])], 0
        self._is_nameless, self._loose = True, [found[1]]
        return [], 0

    def _named(self, header: str) -> list[Part]:
        name = header.strip().removeprefix(self._marks.prefix).strip()
        self._is_named = bool(name)
        return [("call", name)] if name else []

    def _arguments(self, text: str) -> list[Part]:
        if not self._has_arguments:
            text = text if self._loose else text.lstrip()
            if self._loose or not text.startswith("{"):
                self._loose += [text] if text else []
                return []
            self._has_arguments = True
        if self._value.is_done or not text:
            return []
        return [("arguments", text[: self._value.feed(text)])]

    def close(self, *, cut: bool) -> list[Part]:
        parts: list[Part] = []
        if not self._is_named:
            parts = [] if cut or self._is_nameless else self._named(self._head.text)
            if not parts:
                return [] if cut else [("text", "".join(self._loose) or self._head.text)]
        if not self._has_arguments and not cut:
            loose = "".join(self._loose).rstrip().removesuffix(self._marks.trailer.strip()).rstrip()
            parts.append(("arguments", loose or "{}"))
        return parts if cut and not self.is_complete else [*parts, ("end", "")]


class _BareBody:
    """Calls of our own: `name arguments`, where the arguments may be the one argument's bare text.

    That becomes a JSON object where the tool is known; where it is not, arguments are passed on as they were written.
    """

    is_inside = is_complete = is_over = False

    def __init__(self, marks: CallMarks, tools: Tools) -> None:
        self._tools = tools
        self._head = Until(marks.separator)
        self._is_named = False
        self._nameless: list[str] = []
        """All of what begins with a separator, which is no call."""
        self._key: str | None = None
        """The tool's one argument, a string. None: arguments are passed on."""
        self._held: list[str] = []
        """Arguments that may be bare or an object: which, the end will tell."""
        self._is_bare = self._has_arguments = False

    def feed(self, text: str) -> tuple[list[Part], int]:
        if self._is_named:
            return self._arguments(text), 0
        found = None if self._nameless else self._head.feed(text)
        if found is None:
            self._nameless += [text] if self._nameless else []
        elif found[0]:
            return [*self._named(found[0]), *self._arguments(found[1])], 0
        else:
            self._nameless = [found[1]]
        return [], 0

    def _named(self, header: str) -> list[Part]:
        self._is_named = True
        tool = self._tools.get(header)
        self._key = only_string(tool.parameters) if tool else None
        return [("call", header)]

    def _arguments(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._is_bare or self._key is None:
            self._has_arguments = True
            return [("arguments", _escaped(text) if self._is_bare else text)]
        was_blank = not self._held or not self._held[-1].strip()
        self._held.append(text)
        if not was_blank or not (start := text.lstrip()) or start.startswith("{"):
            return []
        held, self._held, self._is_bare = "".join(self._held), [], True
        return [("arguments", f'{{{_quoted(self._key)}: "{_escaped(held)}')]

    def close(self, *, cut: bool) -> list[Part]:
        parts: list[Part] = []
        if not self._is_named:
            if cut or self._nameless or not self._head.text:
                return [] if cut else [("text", "".join(self._nameless))]
            parts += self._named(self._head.text)
        rest = "".join(self._held) if cut else self._rest()
        if rest:
            parts.append(("arguments", rest))
        return parts if cut else [*parts, ("end", "")]

    def _rest(self) -> str:
        """What the arguments lack of being JSON."""
        if self._is_bare:
            return '"}'
        if self._key is None:
            return "" if self._has_arguments else "{}"
        held = "".join(self._held)
        found = read_arguments(one_string(self._key), held)
        return held if as_object(held) == found else _quoted(found)


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    return _quoted(text)[1:-1]


class _ObjectsBody:
    """JSON objects of name and arguments, one or more, in a list or not."""

    def __init__(self) -> None:
        self.is_over = False
        self._num_ended = 0
        self._begin()

    def _begin(self) -> None:
        self._state: Literal["open", "key", "colon", "value", "broken"] = "open"
        self._raw: list[str] = []
        """All of the object, until its name is known."""
        self._text: list[str] = []
        """Of the key or value that is being read."""
        self._key = self._early = ""
        self._scan = JsonEnd()
        self._is_named = self._has_arguments = False

    @property
    def is_inside(self) -> bool:
        return self._scan.in_string

    @property
    def is_complete(self) -> bool:
        return self._num_ended > 0 and self._state == "open"

    def feed(self, text: str) -> tuple[list[Part], int]:
        parts: list[Part] = []
        while text and not self.is_over:
            size = self._step(text, parts)
            if self._state != "open" and not self._is_named:
                self._raw.append(text[:size])
            text = text[size:]
        return parts, len(text)

    def _step(self, text: str, parts: list[Part]) -> int:
        """Take the beginning of a text; returns how many characters."""
        if self._state == "broken":
            return len(text)
        if not self._text and text[0].isspace():
            return len(text) - len(text.lstrip())
        if self._text or self._state == "value" or (self._state == "key" and text[0] == '"'):
            return self._scanned(text, parts)
        self._sign(text[0], parts)
        return 1

    def _sign(self, char: str, parts: list[Part]) -> None:
        """A sign between keys and values."""
        match self._state, char:
            case ("open", "[" | ",") | ("key", ","):
                pass
            case "open", "]":
                self.is_over = True
            case "open", "{":
                self._state = "key"
            case "colon", ":":
                self._state = "value"
            case "key", "}":
                self._ended(parts)
            case _:
                self._state = "broken"

    def _scanned(self, text: str, parts: list[Part]) -> int:
        size = self._scan.feed(text)
        is_arguments = self._state == "value" and self._key in ("arguments", "parameters")
        first = self._text[0] if self._text else text
        streams = is_arguments and self._is_named and first.startswith("{")
        if streams:
            parts += [("arguments", text[:size])] if size else []
            self._has_arguments, self._text = True, ["{"]
        else:
            self._text.append(text[:size])
        if self._scan.is_done:
            self._value("".join(self._text), parts, said=streams)
            self._text, self._scan = [], JsonEnd()
        return size

    def _value(self, written: str, parts: list[Part], *, said: bool) -> None:
        """A key or value is complete."""
        try:
            found = json.loads(written)
        except (ValueError, RecursionError):
            found = None
        if self._state == "key":
            self._state, self._key = ("colon", found) if isinstance(found, str) else ("broken", "")
            return
        self._state = "key"
        if self._key == "name" and isinstance(found, str) and found and not self._is_named:
            self._is_named = True
            parts.append(("call", found))
            if self._early:
                parts.append(("arguments", self._early))
                self._has_arguments = True
        elif self._key in ("arguments", "parameters") and not said:
            self._early = found if isinstance(found, str) else written
            if self._is_named:
                parts.append(("arguments", self._early))
                self._has_arguments = True

    def _ended(self, parts: list[Part]) -> None:
        if self._is_named:
            if not self._has_arguments:
                parts.append(("arguments", "{}"))
            parts.append(("end", ""))
            self._num_ended += 1
            self._begin()
        else:
            self._state = "broken"

    def close(self, *, cut: bool) -> list[Part]:
        if self._is_named:
            return [] if cut else [("end", "")]
        raw = "" if cut or self._num_ended else "".join(self._raw)
        return [("text", raw)] if raw else []


_FUNCTION = re.compile(r"<function=([^<>\n]{1,256})>")
_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,256})>")
_END_FUNCTION, _LONGEST = "</function>", 270


class _XmlBody:
    """`<function=name><parameter=key>value</parameter></function>`; one piece of JSON for each argument."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._text = ""
        """Where the next mark may begin."""
        self._raw: list[str] = []
        """All so far, until the name is known."""
        self._name = self._key = ""
        self._value: Until | None = None
        self._num_arguments = 0
        self.is_complete = self.is_over = False

    @property
    def is_inside(self) -> bool:
        return self._value is not None

    def feed(self, text: str) -> tuple[list[Part], int]:
        parts: list[Part] = []
        if not self._name:
            self._raw.append(text)
        if self._value is None:
            self._text += text
        else:
            self._end_value(text, parts)
        while self._value is None and not self.is_complete and self._step(parts):
            pass
        return parts, 0

    def _step(self, parts: list[Part]) -> bool:
        """Take the next mark, if it is there."""
        wanted = _PARAMETER if self._name else _FUNCTION
        found = wanted.search(self._text)
        ends_at = self._text.find(_END_FUNCTION) if self._name else -1
        if ends_at >= 0 and not (found and found.start() < ends_at):
            parts += self._end()
            return False
        if found is None:
            self._text = self._text[-_LONGEST:]
            return False
        rest, self._text = self._text[found.end() :], ""
        if not self._name:
            self._name, self._text = found[1].strip(), rest
            parts.append(("call", self._name))
        else:
            self._key, self._value = found[1].strip(), Until("</parameter>")
            self._end_value(rest, parts)
        return True

    def _end_value(self, text: str, parts: list[Part]) -> None:
        assert self._value is not None
        found = self._value.feed(text)
        if found is not None:
            parts.append(("arguments", self._argument(found[0])))
            self._text, self._value = found[1], None

    def _argument(self, written: str) -> str:
        value = _value(written.removeprefix("\n").removesuffix("\n"), self._schema(self._key))
        self._num_arguments += 1
        return ("{" if self._num_arguments == 1 else ", ") + f"{_quoted(self._key)}: {value}"

    def _schema(self, key: str) -> Mapping[str, Any]:
        tool = self._tools.get(self._name)
        properties = tool.parameters.get("properties") if tool else None
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        return schema if isinstance(schema, Mapping) else {}

    def _end(self) -> list[Part]:
        self.is_complete = True
        return [("arguments", "}" if self._num_arguments else "{}"), ("end", "")]

    def close(self, *, cut: bool) -> list[Part]:
        if self.is_complete:
            return []
        if not self._name:
            return [] if cut else [("text", "".join(self._raw))]
        return [] if cut else self._end()


def _value(written: str, schema: Mapping[str, Any]) -> str:
    """An argument's text as JSON, by the type that the tool wants; without one it is a string."""
    kinds = schema.get("type", "string" if not {"anyOf", "oneOf", "enum"} & schema.keys() else None)
    if kinds != "string":
        try:
            json.loads(written)
            return written
        except (ValueError, RecursionError):
            pass
    return _quoted(written)
