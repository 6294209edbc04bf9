"""`/v1/models`. Imports no torch."""

from typing import Any

from nalar.server.config import ServerConfig


def model_card(config: ServerConfig, name: str, created: int, max_model_len: int) -> dict[str, Any]:
    card = {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "nalar",
        "root": config.name,
        "parent": None,
        "max_model_len": max_model_len,
        "weight_version": config.worker.weight_version,
    }
    if config.intended_use:
        card["intended_use"] = config.intended_use
    if config.prices is not None:
        card["pricing_usd_per_million"] = {
            "input": config.prices.input_usd,
            "cached_input": config.prices.cached_input_usd,
            "output": config.prices.output_usd,
        }
    return card


def model_list(config: ServerConfig, created: int, max_model_len: int) -> dict[str, Any]:
    cards = [model_card(config, name, created, max_model_len) for name in config.served_model_names]
    return {"object": "list", "data": cards}
