"""The file of `nalar serve --config`: a `ServerConfig` as JSON, or a part of one. Flags win over it."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from nalar.config import ConfigError
from nalar.server.config import ServerConfig

PATHS = {
    **{
        name: name
        for name in (
            *("host", "port", "api_keys", "allowed_origins", "admin_key_file", "ledger", "runs"),
            *("reasoning_key", "send_timeout_s", "drain_s", "log_prompts", "log_level"),
            *("intended_use", "incident_contact"),
        )
    },
    **{
        name: f"admission.{name}"
        for name in ("max_running", "max_queued", "requests_per_minute", "tokens_per_minute")
    },
    **{name: f"worker.engine.{name}" for name in ("max_num_seqs", "max_model_len", "memory_frac")},
    **{name: f"worker.{name}" for name in ("device", "dtype", "threads")},
    "model": "worker.folder",
    "served_model_name": "served_model_names",
    "compile_s": "worker.grammar.compile_s",
    "chat_template": "worker.chat_template",
    "temperature": "sampling.temperature",
    "max_tokens": "default_max_tokens",
}
"""Where a flag's value stands in the config."""
FORMS = ("prices", "policy", "efforts")
"""Flags whose words are another form of what stands under their name."""


def defaults(settings: Mapping[str, Any], of: type, at: Path) -> dict[str, Any]:
    """What flags of class `of` are where they are not given. ConfigError for a value of a wrong kind."""
    found, kinds = {}, get_type_hints(of, include_extras=True)
    for field in dataclasses.fields(of):
        path = PATHS.get(field.name)
        if path is None or (value := at_path(settings, path)) is None:
            continue
        try:
            found[field.name] = TypeAdapter(kinds[field.name]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].lower()
            raise ConfigError(at=f"{at}: {path}", got=repr(value)[:80], want=message) from None
    return found


def at_path(document: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path; None where nothing does."""
    value: Any = document
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def with_settings(
    config: ServerConfig, settings: Mapping[str, Any], given: Collection[str], at: Path
) -> ServerConfig:
    """`config`, which flags have made, with all that the file alone says. given: those of `FORMS` that are flags.

    ConfigError for what the config does not know or take.
    """
    document = config.model_dump()
    for path, value in _leaves(settings):
        if path == "api_key_sha256" and value is None:
            continue  # a config that was printed whole; the key of the environment stays
        if path not in PATHS.values() and path.split(".")[0] not in given:
            _put(document, path, value)
    try:
        return ServerConfig.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        got, want = repr(first["input"])[:80], first["msg"].lower()
        raise ConfigError(at=f"{at}: {path}", got=got, want=want) from None


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _put(document: dict[str, Any], path: str, value: object) -> None:
    *parts, last = path.split(".")
    for name in parts:
        if not isinstance(document.get(name), dict):
            document[name] = {}
        document = document[name]
    document[last] = value
