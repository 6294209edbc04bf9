"""Settings deep inside a config by dotted words: `rl1.rl.steps=50`, `rl2=null`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from nalar.config import Config, UserError, lookup

C = TypeVar("C", bound=Config)
FLAG = "--set"


def overridden(config: C, words: Sequence[str]) -> C:
    """The config with each `NAME.NAME=VALUE` in its place, checked as a whole. UserError that names the nearest field.

    A value is JSON (`5`, `true`, `null`, `["a","b"]`), or else text as it stands.
    """
    document = config.model_dump(mode="json")
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise UserError(at=FLAG, got=repr(word), want="NAME.NAME=VALUE")
        _put(document, name, _value(text))
    return checked(type(config), document, words)


def checked(cls: type[C], document: Mapping[str, Any], words: Sequence[str]) -> C:
    """A config from its document. UserError that names the field, for people who wrote these words."""
    try:
        return cls.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        # Where one of several kinds is meant, pydantic puts the kind's name between the fields' names.
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(
            at=f"{FLAG} {name}",
            got=json.dumps(first["input"], default=str)[:120],
            want=first["msg"],
            hint=None if not words else f"one of {', '.join(words)} is not what the field takes",
        ) from None


def _put(document: dict[str, Any], name: str, value: Any) -> None:
    *outer, last = name.split(".")
    place: Any = document
    for depth, part in enumerate(outer):
        _refuse_unknown(part, place, name)
        place = place[part]
        if not isinstance(place, dict):
            off = ".".join(outer[: depth + 1])
            raise UserError(
                at=f"{FLAG} {name}",
                got=f"{off}, which is {'off' if place is None else 'one value'}",
                want="the name of a setting",
            )
    _refuse_unknown(last, place, name)
    place[last] = [value] if isinstance(place[last], list) and isinstance(value, str) else value


def _refuse_unknown(part: str, place: Mapping[str, Any], name: str) -> None:
    """What maps names that are a user's own, such as weights by task, takes any."""
    if part not in place:
        lookup(part, {key: key for key in place}, at=f"{FLAG} {name}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
