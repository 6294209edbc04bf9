"""The families that a `model_type` can mean. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from nalar.config import lookup
from nalar.model.families.deepseek_v3 import DEEPSEEK_V3, KIMI_K2
from nalar.model.families.family import Family
from nalar.model.families.granite import GRANITE, GRANITEMOE
from nalar.model.families.llama import LLAMA
from nalar.model.families.qwen import QWEN2, QWEN3, QWEN3_MOE

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        DEEPSEEK_V3,
        KIMI_K2,
        QWEN2,
        QWEN3,
        QWEN3_MOE,
        LLAMA,
        GRANITE,
        GRANITEMOE,
    )
}


def family_of(published: Mapping[str, Any]) -> Family:
    """The family of a `config.json`; ConfigError lists those known."""
    return lookup(str(published.get("model_type")), FAMILIES, at="config.json model_type")
