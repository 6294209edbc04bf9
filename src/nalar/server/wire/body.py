"""Bytes of a request to a JSON object, or the error that says why not. Imports no torch."""

import json
import math
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nalar.server.config import BodyConfig
from nalar.server.wire.errors import ApiError, bad_request, of_validation

_LONGEST_INT = 40
"""Digits. A schema may bound an integer far outside of 64 bits; nothing needs thousands of digits."""
_MOST_LOOKED_AT = 1000
"""Entries of a list in which unknown fields are looked for."""
T = TypeVar("T", bound="Wire")


class Wire(BaseModel):
    """A body as clients send it. Fields that nobody knows are kept, and named in the log."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """null means: as if it were not there."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def of(cls: type[T], body: dict[str, Any]) -> T:
        """ApiError (400) that names the first field that is wrong."""
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise of_validation(error) from None

    @property
    def unknown(self) -> list[str]:
        """With the lists and objects that they stand in, such as `messages.reasonin`."""
        return sorted(set(_unknown_in(self, "")))


def _unknown_in(value: object, at: str) -> Iterator[str]:
    if isinstance(value, Wire):
        yield from (at + name for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown_in(getattr(value, name), f"{at}{name}.")
    elif isinstance(value, list):
        for one in value[:_MOST_LOOKED_AT]:
            yield from _unknown_in(one, at)


def read_object(data: bytes, config: BodyConfig) -> dict[str, Any]:
    """Strict JSON: UTF-8, numbers that are finite, nesting and integers within limits, whole characters."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_request(f"body: no UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
        )
    except RecursionError:
        raise _too_deep(config) from None
    except ValueError as error:
        raise bad_request(f"body: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad_request("body: wanted a JSON object")
    _check(value, config)
    return value


def _check(value: object, config: BodyConfig) -> None:
    level = [value]
    for _ in range(config.max_json_depth + 1):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below += one.keys()
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and not one.isascii():
                try:
                    one.encode()
                except UnicodeEncodeError:
                    raise bad_request("body: half of a surrogate pair in a string") from None
        if not below:
            return
        level = below
    raise _too_deep(config)


def _too_deep(config: BodyConfig) -> ApiError:
    return bad_request(f"body: nested deeper than {config.max_json_depth} levels")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"a number beyond a double's range: {digits[:20]}")
    return number


def _bounded(digits: str) -> int:
    if len(digits) > _LONGEST_INT:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)
