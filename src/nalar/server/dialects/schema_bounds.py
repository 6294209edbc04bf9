"""How much a grammar makes of a schema, told before it is tried: compiling cannot be stopped, and all wait for it.

Two lines of a schema can stand for millions. `allOf`, and whatever stands beside `$ref` or `anyOf`, is merged: each way
of the one with each way of the other. Imports no torch.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from nalar.config import UserError

MAX_SCHEMA_CHARS = 2**16
"""Of all schemas of one request, as JSON. One text of twice as many held the engine up for 13 s."""
MAX_PARTS = 20_000
"""Of a schema with all its references followed, wherever something is merged."""
_CAP = 10**12


def check_schemas(schemas: Sequence[Mapping[str, Any]]) -> None:
    """UserError for more than can be compiled while others wait."""
    size = sum(len(json.dumps(schema, ensure_ascii=False)) for schema in schemas)
    if size > MAX_SCHEMA_CHARS:
        got = f"{size} characters"
        raise UserError(at="schema", got=got, want=f"{MAX_SCHEMA_CHARS} at most, in all")
    for schema in schemas:
        try:
            parts = _Sizes(schema).parts
        except RecursionError:
            raise UserError(at="schema", got="a long chain of $ref", want="a shorter one") from None
        if parts > MAX_PARTS:
            raise UserError(
                at="schema",
                got=f"{'' if parts < _CAP else 'over '}{parts} parts once allOf and $ref are merged",
                want=f"{MAX_PARTS} at most",
                hint="write out what allOf would merge",
            )


class _Sizes:
    """Of every part of one schema: how many parts it has with references followed, and in how many ways it can be met.

    A reference that leads into itself counts as one there: a grammar names it instead of writing it out.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root, self._known = schema, dict[int, tuple[int, int]]()
        self._merges = False
        parts, ways = self._of(schema)
        self.parts = max(parts, ways) if self._merges else 1

    def _of(self, node: object) -> tuple[int, int]:
        """Parts, ways."""
        if isinstance(node, list):
            sizes = [self._of(one) for one in node]
            return _capped(1 + sum(s for s, _ in sizes)), max((w for _, w in sizes), default=1)
        if not isinstance(node, Mapping):
            return 1, 1
        if (known := self._known.get(id(node))) is None:
            self._known[id(node)] = 1, 1
            known = self._known[id(node)] = self._of_object(node)
        return known

    def _of_object(self, node: Mapping[str, Any]) -> tuple[int, int]:
        parts, merged, other = 1, list[int](), 1
        for name, value in node.items():
            if name in ("$id", "id") and isinstance(value, str) and node is not self._root:
                raise UserError(at="schema", got=f"{name} within it", want="one document")
            is_reference = name == "$ref" and isinstance(value, str)
            below = self._target(value) if is_reference else value
            size, ways = self._of(below)
            parts += size
            if name in ("anyOf", "oneOf") and isinstance(value, list):
                merged.append(_capped(sum(self._of(one)[1] for one in value)))
            elif name == "allOf" and isinstance(value, list):
                self._merges = True
                merged += [self._of(one)[1] for one in value]
            elif is_reference:
                merged.append(ways)
            else:
                other = max(other, ways)
        if merged and len(node) > 1:
            self._merges = True
        product = 1
        for ways in merged:
            product = _capped(product * ways)
        ways = max(product, other)
        several = len([w for w in merged if w > 1]) > 1
        return _capped(parts + (product if several else 0)), ways

    def _target(self, reference: str) -> object:
        """What `#/a/b` leads to. UserError for nothing: what is not found here cannot be counted."""
        found: Any = self._root
        head, *names = unquote(reference).split("/")
        for name in names:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                found = found.get(name) if isinstance(found, Mapping) else None
        if head != "#" or not isinstance(found, Mapping | bool):
            raise UserError(
                at="schema", got=f"$ref {reference[:80]}", want="a place in it, as #/$defs/a"
            )
        return found


def _capped(number: int) -> int:
    return min(number, _CAP)
