"""A source as one word of the command line: `procedural`, `hf:ID` or a path, then `,name=value` for what differs."""

import re
from typing import TypeGuard

from pydantic import ValidationError

from nalar.config import Config, UserError, lookup
from nalar.data.config import AnySource, DatasetSource, FileSource, ProceduralSource

HUB = "hf:"
_SETTING = re.compile(r",([a-z_]+)=([^,]*)\Z")
_WHERE = {"kind", "path", "id"}
_ESCAPES = {"n": "\n", "t": "\t", "c": ",", "\\": "\\"}
"""What stands behind a backslash in a value for what a word cannot hold well, or would end it."""


def is_source(value: object) -> TypeGuard[AnySource]:
    return isinstance(value, ProceduralSource | FileSource | DatasetSource)


def source_of(word: str) -> AnySource:
    """The source that a word means; UserError that names the setting that cannot be."""
    settings: dict[str, str] = {}
    where = word
    while found := _SETTING.search(where):
        settings[found[1]] = _unescaped(found[2])
        where = where[: found.start()]
    cls: type[AnySource] = FileSource
    given = {"path": where}
    if where == "procedural":
        cls, given = ProceduralSource, {}
    elif where.startswith(HUB):
        cls, given = DatasetSource, {"id": where.removeprefix(HUB)}
    known = {name: name for name in cls.model_fields if name not in _WHERE}
    for name in settings:
        lookup(name, known, at=f"source {word!r}")
    try:
        return cls.model_validate(given | settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            at=f"source {word!r}",
            got=f"{first['loc'][0]}={first['input']}",
            want=first["msg"],
            hint="FILE, FOLDER, 'GLOB' or hf:ID, then such as ,field=body,weight=2",
        ) from error


def word_of(source: AnySource) -> str:
    """The word that means this source."""
    usual: Config = type(source).model_construct()
    said = [
        f",{name}={_escaped(str(value))}"
        for name, value in source
        if name not in _WHERE and value != getattr(usual, name)
    ]
    return source.where + "".join(said)


def _escaped(value: str) -> str:
    letters = {char: f"\\{letter}" for letter, char in _ESCAPES.items()}
    return "".join(letters.get(char, char) for char in value)


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), value)
