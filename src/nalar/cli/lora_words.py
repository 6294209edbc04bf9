"""Adapters as one word of the command line: `name=value` with commas between, `r=8,target_modules=q_proj+v_proj`."""

from typing import Any

from pydantic import ValidationError

from nalar.config import ConfigError, UserError, lookup
from nalar.model.config import LoraConfig

NONE = "None"


def lora_of(word: str) -> LoraConfig | None:
    """What a word means; `None` is none. UserError that names the setting that cannot be."""
    if word == NONE:
        return None
    known = {name: name for name in LoraConfig.model_fields}
    given: dict[str, Any] = {}
    for setting in word.split(","):
        name, sign, value = setting.partition("=")
        if not sign or not value:
            raise UserError(
                at=f"--lora {word!r}",
                got=repr(setting),
                want="name=value, with commas between",
                hint="--lora r=8,lora_alpha=16,target_modules=q_proj+v_proj",
            )
        name = lookup(name, known, at=f"--lora {word!r}")
        given[name] = tuple(value.split("+")) if name == "target_modules" else value
    try:
        return LoraConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            at=f"--lora {word!r}", got=f"{first['loc'][0]}={first['input']}", want=first["msg"]
        ) from error


def word_of(lora: LoraConfig | None) -> str:
    """The word that means these adapters."""
    if lora is None:
        return NONE
    said = [
        f"{name}={'+'.join(value) if isinstance(value, tuple) else value}"
        for name, value in lora
        if name == "r" or value != type(lora).model_fields[name].default
    ]
    return ",".join(said)
