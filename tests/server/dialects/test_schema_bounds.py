"""Schemas that are small to send and endless to compile."""

import pytest

from nalar.config import UserError
from nalar.server.dialects.schema_bounds import MAX_SCHEMA_CHARS, check_schemas

LEAF = {"type": "object", "properties": {"a": {"type": "string"}}}


def doubling(keyword, depth, prefix="#/$defs/"):
    """Each of `depth` definitions names the next one twice."""
    defs = {f"a{i}": {keyword: [{"$ref": f"{prefix}a{i + 1}"}] * 2} for i in range(depth)}
    return {"$ref": f"{prefix}a0", "$defs": {**defs, f"a{depth}": LEAF}}


def ways(num):
    return {"anyOf": [{"type": "object", "properties": {f"p{i}": LEAF}} for i in range(num)]}


@pytest.mark.parametrize(
    "schema",
    [
        doubling("allOf", 40),
        doubling("allOf", 40, "#/%24defs/"),
        {"allOf": [ways(2)] * 24},
        {"properties": {"default": {"allOf": [ways(2)] * 24}}},
        {"type": "object", "allOf": [{"$ref": "other"}]},
        {"allOf": [{"$id": "http://x/y", **doubling("allOf", 40)}]},
        {"enum": ["x" * MAX_SCHEMA_CHARS]},
        {
            "$ref": "#/$defs/a0",
            "$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(3000)},
        },
    ],
)
def test_what_would_never_be_compiled_is_refused_at_once(schema):
    with pytest.raises(UserError):
        check_schemas([schema])


def test_what_people_write_passes():
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {"node": {**LEAF, "allOf": [{"$ref": "#/$defs/name"}]}},
    }
    tree["$defs"]["name"] = {"properties": {"below": {"$ref": "#/$defs/node"}}}
    check_schemas([tree, {"allOf": [ways(4), ways(3), LEAF]}, doubling("allOf", 6), {}])
