"""Published algorithms by name: functions that change a config of RL. Imports no torch."""

from collections.abc import Callable, Mapping
from typing import Any

from nalar.rl.config import (
    AdvantageConfig,
    CorrectionConfig,
    KLConfig,
    ObjectiveConfig,
    RLConfig,
)


def r1_zero_literal(config: RLConfig) -> RLConfig:
    """DeepSeek-R1-Zero with the numbers of arXiv:2501.12948v2.

    Stated: step size 3e-6, KL 0.001 by k3 in the loss, temperature 1, 16 responses to each of 32 questions an update,
    8,192 responses a rollout in 16 updates, the reference renewed every 400 updates, 10,400 updates, accuracy and
    format at equal weight, a cap of 32,768 tokens. Updates are counted there; a step is a whole rollout here, so 400 of
    theirs are 25 of ours and 10,400 are 650.
    Stated and left to a second run: the cap of 65,536 tokens from about update 8,200 on.
    Not stated: the clip range of R1-Zero (R1's 10 stands here, which clips next to nothing); the optimizer, its decay,
    schedule and clipping of gradients, which are kept; how tokens are added up (a mean over each response's tokens, as
    in arXiv:2402.03300); what is added to a standard deviation (1e-6 here).
    """
    return _changed(
        config,
        steps=650,
        reward=config.reward.model_dump() | {"correct": 1.0, "well_formed": 1.0},
        **_R1,
    )


def r1_literal(config: RLConfig) -> RLConfig:
    """The first RL stage of DeepSeek-R1: as R1-Zero, with a clip range of 10, as printed, and the share of the thought
    in the target language added to the reward.

    Not stated: its number of steps, which is kept. The target language is the config's, or English.
    """
    language = {"language": 1.0, "target_language": config.reward.target_language or "en"}
    return _changed(
        config,
        reward=config.reward.model_dump() | {"correct": 1.0, "well_formed": 1.0} | language,
        **_R1,
    )


_R1: Mapping[str, Any] = {
    "lr": 3e-6,
    "temperature": 1.0,
    "group_size": 16,
    "prompts_per_step": 512,
    "minibatches": 16,
    "max_tokens": 32_768,
    "mask_truncated": False,
    "advantage": AdvantageConfig(name="grpo", eps=1e-6),
    "objective": ObjectiveConfig(clip_low=10.0, clip_high=10.0, aggregation="sequence_mean"),
    "kl": KLConfig(coef=0.001, refresh_every_steps=25),
    "correction": CorrectionConfig(),
}


def dapo(config: RLConfig) -> RLConfig:
    """DAPO (arXiv:2503.14476): clip-higher, a mean over tokens, no KL, truncated responses out of the loss and a soft
    penalty before the cap, further prompts in the place of groups of equal rewards. Its rewards are 1 and -1, of which
    the penalty takes up to 1: 2 and 0 here.

    It samples until the step is full; here it gives up behind 10 rounds. Its sizes and step size are a recipe's affair
    and kept.
    """
    reward = {"correct": 2.0, "well_formed": 0.0, "overlong": 1.0, "overlong_from_frac": 0.8}
    return _changed(
        config,
        reward=config.reward.model_dump() | reward,
        mask_truncated=True,
        advantage=AdvantageConfig(name="grpo", eps=1e-6),
        objective=ObjectiveConfig(clip_low=0.2, clip_high=0.28, aggregation="token_mean"),
        kl=KLConfig(),
        rollout=config.rollout.model_dump() | {"max_refills": 10},
    )


def dr_grpo(config: RLConfig) -> RLConfig:
    """Dr. GRPO (arXiv:2503.20783): no division by a deviation, and none by a length. Sizes and step size are kept."""
    return _changed(
        config,
        advantage=AdvantageConfig(name="dr_grpo"),
        objective=ObjectiveConfig(clip_low=0.2, clip_high=0.2, aggregation="fixed_length"),
        kl=KLConfig(),
    )


def gspo(config: RLConfig) -> RLConfig:
    """GSPO (arXiv:2507.18071): one ratio a response, clipped at 3e-4 below and 4e-4 above.

    Sizes and step size are kept.
    """
    return _changed(
        config,
        advantage=AdvantageConfig(name="grpo", eps=1e-6),
        objective=ObjectiveConfig(
            name="gspo", clip_low=3e-4, clip_high=4e-4, aggregation="sequence_mean"
        ),
        kl=KLConfig(),
    )


PRESETS: Mapping[str, Callable[[RLConfig], RLConfig]] = {
    "r1-zero-literal": r1_zero_literal,
    "r1-literal": r1_literal,
    "dapo": dapo,
    "dr-grpo": dr_grpo,
    "gspo": gspo,
}


def _changed(config: RLConfig, **changes: Any) -> RLConfig:
    """Checked as a whole, as `model_copy` is not."""
    return RLConfig.model_validate(config.model_dump() | changes)
