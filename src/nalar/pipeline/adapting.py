"""Runs that train adapters on a base: how they begin, and what they go on from."""

from pathlib import Path

from nalar.model.adapter_folder import load_adapter, read_lora
from nalar.model.config import LoraConfig, ModelConfig
from nalar.model.families.adapters import adapted
from nalar.model.lora import adapt
from nalar.model.transformer import Transformer
from nalar.pipeline.config import RlRunConfig, RunConfig, SftConfig, lora_of


def base_of(config: RunConfig) -> Path | None:
    """The folder of the model that a run's adapters are on, which going on needs too. None: there are no adapters."""
    if isinstance(config, SftConfig | RlRunConfig) and config.lora is not None:
        return Path(config.model)
    return None


def begin_adapters(model: Transformer, config: RunConfig) -> None:
    """Give a base the adapters that a run trains: new ones, or those of a folder. UserError where they do not fit."""
    lora, base = lora_of(config), base_of(config)
    if lora is None:
        return
    adapt(model, lora, base=str(base), seed=config.seed)
    if lora.adapter is not None:
        load_adapter(model, Path(lora.adapter))


def refuse_unfit_adapters(model: ModelConfig, lora: LoraConfig | None) -> None:
    """UserError where a model has no such modules, or there is no such adapter to begin with."""
    if lora is not None:
        adapted(model, lora)
        if lora.adapter is not None:
            read_lora(Path(lora.adapter))
