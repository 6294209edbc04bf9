"""Rotary settings in `config.json`, in the older spelling and in that of transformers 5. Imports no torch."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nalar.config import ConfigError
from nalar.model.config import ModelConfig, RopeScaling, yarn_mscale

ROPE_FIELDS = frozenset(("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"))
DEFAULT_THETA = 10000.0
_YARN = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate")
# vLLM's word, which R1-0528-Qwen3-8B uses: the same in parts of 0.1 ln(factor) + 1.
_RELATIVE = "attn_factor"
_FIELDS = {"yarn": _YARN, "llama3": ("low_freq_factor", "high_freq_factor")}


def read_rope(published: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of ModelConfig."""
    settings = dict(_settings(published))
    old = published.get("rope_theta")
    theta = settings.pop("rope_theta", old)
    if old is not None and theta != old:
        raise unusable("rope_theta", f"{old} beside rope_parameters of {theta}", "one number")
    kind = settings.pop("rope_type", None)
    older = settings.pop("type", None)
    kind = kind or older or "default"
    if older not in (None, kind):
        raise unusable("rope_scaling.type", f"{older} beside rope_type {kind}", "one of them")
    fraction = settings.pop("partial_rotary_factor", published.get("partial_rotary_factor"))
    if fraction not in (None, 1.0):
        raise unusable("partial_rotary_factor", repr(fraction), "1: all of a head is turned")
    theta = DEFAULT_THETA if theta is None else theta
    return {"rope_theta": theta, "rope_scaling": _scaling(kind, settings, max_positions)}


def publish_rope(config: ModelConfig) -> dict[str, Any]:
    """The older spelling: every program reads it, and transformers 5 turns it into its own."""
    published: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    scaling = config.rope_scaling
    if scaling is not None:
        names = ("factor", "original_max_position_embeddings", *_FIELDS[scaling.rope_type])
        values = {name: getattr(scaling, name) for name in names}
        # Programs take a null of their own default for a number, so it is left out.
        values = {name: value for name, value in values.items() if value is not None}
        if scaling.attention_factor is not None:
            values[_RELATIVE] = scaling.attention_factor / yarn_mscale(scaling.factor)
        published["rope_scaling"] = {"rope_type": scaling.rope_type, **values}
    return published


def _settings(published: Mapping[str, Any]) -> Mapping[str, Any]:
    old, new = published.get("rope_scaling"), published.get("rope_parameters")
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
        if not isinstance(value, dict | None):
            raise unusable(name, repr(value), "an object or null")
    if old and new and old != new:
        raise unusable("rope_parameters", "another value than rope_scaling", "one of them")
    return old or new or {}


def _scaling(kind: str, settings: dict[str, Any], max_positions: int) -> RopeScaling | None:
    if kind == "default":
        known: tuple[str, ...] = ()
    elif kind in _FIELDS:
        known = ("factor", "original_max_position_embeddings", *_FIELDS[kind])
        known += (_RELATIVE,) if kind == "yarn" else ()
    else:
        raise unusable("rope_scaling.rope_type", repr(kind), "default, yarn or llama3")
    for key, value in settings.items():
        if key not in known and value is not None:
            want = "one of " + ", ".join(known) if known else "nothing: no rope_type is given"
            raise unusable(f"rope_scaling.{key}", repr(value), want)
    if not known:
        return None
    given = {key: value for key, value in settings.items() if value is not None}
    if "factor" not in given:
        raise unusable("rope_scaling.factor", "nothing", "a number")
    given.setdefault("original_max_position_embeddings", max_positions)
    relative = given.pop(_RELATIVE, None)
    try:
        scaling = RopeScaling.model_validate({"rope_type": kind, **given})
    except ValidationError as error:
        raise refused(error, "rope_scaling.") from error
    return scaling if relative is None else _with_relative_factor(scaling, relative)


def _with_relative_factor(scaling: RopeScaling, relative: object) -> RopeScaling:
    if not isinstance(relative, int | float) or relative <= 0:
        raise unusable(f"rope_scaling.{_RELATIVE}", repr(relative), "a number above 0")
    factor, given = relative * yarn_mscale(scaling.factor), scaling.attention_factor
    if given is None:
        return scaling.model_copy(update={"attention_factor": factor})
    if not math.isclose(factor, given, rel_tol=1e-6):
        got = f"{relative}, which makes {factor}, beside attention_factor {given}"
        raise unusable(f"rope_scaling.{_RELATIVE}", got, "one of them")
    return scaling


def refused(error: ValidationError, prefix: str = "") -> ConfigError:
    """What pydantic says of the first wrong value, in our words."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"])) or "of the model"
    return unusable(prefix + name, repr(first["input"]), first["msg"].lower())


def unusable(key: str, got: str, want: str) -> ConfigError:
    return ConfigError(at=f"config.json {key}", got=got, want=want)
