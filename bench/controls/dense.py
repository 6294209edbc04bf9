"""The same recipe with a dense model in place of the mixture: as many active parameters, no experts."""

from nalar.model.config import ModelConfig
from nalar.plan.model import count_parameters


def dense_of(config: ModelConfig) -> ModelConfig:
    """Every layer dense, the width chosen so that active parameters come nearest."""
    wanted = count_parameters(config).active_params

    def with_width(width: int) -> ModelConfig:
        return config.model_copy(
            update={
                "n_routed_experts": 0,
                "first_k_dense_replace": config.num_hidden_layers,
                "intermediate_size": width,
            }
        )

    none = count_parameters(with_width(0)).active_params
    a_unit = count_parameters(with_width(1)).active_params - none
    return with_width(max(1, round((wanted - none) / a_unit)))
