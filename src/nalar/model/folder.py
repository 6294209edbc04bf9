"""What stands in a model's folder beside its weights: config, generation settings, tokenizer, chat template."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nalar.config import UserError
from nalar.disk import decode

CONFIG = "config.json"
GENERATION = "generation_config.json"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"

TokenId = Annotated[int, Field(ge=0)]


def _as_tuple(value: object) -> object:
    """Published as one id, a list of ids, or null."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


class Generation(BaseModel):
    """`generation_config.json`: how its makers sample from the model. None: they do not say."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    eos_token_id: Annotated[tuple[TokenId, ...], BeforeValidator(_as_tuple)] = ()
    """Each of these ends a response."""
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | None = None
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = None
    """Below 1: off."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class ChatTemplate:
    """Jinja as it was published. Text of strangers: only a sandboxed environment may render it."""

    text: str
    path: Path
    """Where it stood: chat_template.jinja, tokenizer_config.json, or a file that was asked for."""
    others: Mapping[str, str]
    """Templates for other uses, by name, such as `tool_use`."""


@dataclass(frozen=True)
class ModelFolder:
    """What a folder says of its model."""

    path: Path
    config: Mapping[str, Any]
    """config.json as it stands."""
    generation: Generation
    """Where generation_config.json is absent or names no ids: those of config.json."""
    tokenizer_json: Path | None
    tokenizer_config: Mapping[str, Any]
    """As it stands; empty where there is none."""
    chat_template: ChatTemplate | None

    @classmethod
    def read(cls, folder: Path, chat_template: Path | None = None) -> "ModelFolder":
        """chat_template: a file to take in place of the folder's own. UserError that names the file where one cannot be
        read. Weights are not looked at."""
        config = read_json(folder / CONFIG)
        tokenizer_config = _read_if_there(folder / _TOKENIZER_CONFIG)
        tokenizer_json = folder / _TOKENIZER
        return cls(
            path=folder,
            config=config,
            generation=_generation(folder, config),
            tokenizer_json=tokenizer_json if tokenizer_json.is_file() else None,
            tokenizer_config=tokenizer_config,
            chat_template=_chat_template(folder, tokenizer_config)
            if chat_template is None
            else ChatTemplate(_text(chat_template), chat_template, {}),
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UserError where there is none."""
    try:
        document = decode(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            at=str(path.parent), got=f"no {path.name}", want="a model's folder, which has one"
        ) from error
    except OSError as error:
        raise UserError(at=str(path), got=str(error), want="a file that can be read") from error
    if document is None:
        raise UserError(at=str(path), got="text that is not a JSON object", want="a JSON object")
    return document


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _generation(folder: Path, config: Mapping[str, Any]) -> Generation:
    path = folder / GENERATION
    document = _read_if_there(path)
    for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
        if document.get(key) is None:
            document[key] = config.get(key)
    try:
        return Generation.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = first["loc"][0]
        at = path if field in _read_if_there(path) else folder / CONFIG
        raise UserError(
            at=f"{at}: {field}", got=f"{first['input']!r}", want=first["msg"].lower()
        ) from error


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """The file before the entry of tokenizer_config.json, as transformers has it."""
    path = folder / _TEMPLATE
    if path.is_file():
        more = sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))
        return ChatTemplate(_text(path), path, {one.stem: _text(one) for one in more})
    entry, path = tokenizer_config.get("chat_template"), folder / _TOKENIZER_CONFIG
    if entry is None:
        return None
    if isinstance(entry, str):
        return ChatTemplate(entry, path, {})
    named = _named_templates(path, entry)
    if "default" not in named:
        want = "a template of the name default"
        raise UserError(at=f"{path}: chat_template", got=", ".join(named) or "none", want=want)
    return ChatTemplate(named.pop("default"), path, named)


def _named_templates(path: Path, entry: object) -> dict[str, str]:
    """The older form: a list of {name, template}."""
    named = {}
    for one in entry if isinstance(entry, list) else [entry]:
        fields = one if isinstance(one, dict) else {}
        name, text = fields.get("name"), fields.get("template")
        if not isinstance(name, str) or not isinstance(text, str):
            want = "text, or a list of names and templates"
            raise UserError(at=f"{path}: chat_template", got=f"a {type(one).__name__}", want=want)
        named[name] = text
    return named


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(at=str(path), got=str(error), want="text in UTF-8") from error
