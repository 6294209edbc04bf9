"""The models that score in RL: what they read of a response, and what it earns by them."""

from collections.abc import Mapping, Sequence

from nalar.config import UserError
from nalar.data.dialogue import opens_thought
from nalar.data.tokenizer import Tokenizer
from nalar.rl.config import RewardConfig, ScoredBy
from nalar.rl.group import Group
from nalar.rl.reward_model import Ids, RewardModel, squashed


class Scorers:
    """Reward models by the part of the reward that they give, frozen."""

    def __init__(self, models: Mapping[ScoredBy, RewardModel], tokenizer: Tokenizer) -> None:
        """tokenizer: the policy's. UserError where a model has another one, so that its ids mean something else."""
        for name, model in models.items():
            refuse_foreign_tokenizer(name, model.tokenizer, tokenizer)
        self._models, self._tokenizer = models, tokenizer
        self._told = 0.0

    @property
    def longest(self) -> int:
        """Ids of prompt and response that every model has positions for."""
        return min(model.longest for model in self._models.values())

    def scores(self, group: Group, reward: RewardConfig) -> list[Mapping[ScoredBy, float]]:
        """Of each response of a whole group, from 0 to 1 by model. Without a score: models that have no weight in the
        group's task, and responses that are not whole or have no verdict.

        A model passes the sequences of one group together, in the order of their ids, and no others with them: what a
        response earns depends on its group, and on nothing that happens to be scored at the same time.
        """
        found: list[dict[ScoredBy, float]] = [{} for _ in group.responses]
        weights = reward.weights_of(group.problem.task)
        asked = [
            i
            for i, one in enumerate(group.judged)
            if one is not None and one.parsed.well_formed and one.score.error is None
        ]
        for name, model in self._models.items():
            if not asked or not getattr(weights, name):
                continue
            read = [
                read_ids(self._tokenizer, group.prompt_ids, group.responses[i].token_ids, name)
                for i in asked
            ]
            for i, score in zip(asked, model.score(read), strict=True):
                found[i][name] = squashed(score)
        return list(found)

    def used_flops(self) -> float:
        """Operations since this was last asked, by formula."""
        total = sum(model.flops for model in self._models.values())
        used, self._told = total - self._told, total
        return used


def read_ids(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], response_ids: Sequence[int], name: ScoredBy
) -> Ids:
    """What a model reads of a response that ended by itself, of the ids as drawn: as `data/preferences.py: scored_ids`
    has it for texts, which is what it was trained on."""
    said = list(response_ids)
    if tokenizer.end_id in said:
        said = said[: said.index(tokenizer.end_id)]
    thinks = opens_thought(tokenizer, prompt_ids)
    if name == "safety" or not thinks:
        return (*prompt_ids, *said)
    return (*prompt_ids, *said[said.index(tokenizer.end_think_id) :])


def refuse_foreign_tokenizer(name: ScoredBy, own: Tokenizer, policys: Tokenizer) -> None:
    """UserError where a model that scores and the policy do not mean the same by their ids."""
    if own.fingerprint != policys.fingerprint:
        raise UserError(
            at=f"rl.reward.{name}_model",
            got=f"a model with another tokenizer ({own.vocab_size} ids) than the policy's",
            want=f"the policy's, of {policys.vocab_size} ids: responses are scored as they were drawn",
            hint=f"nalar reward --kind {name} --model, with the model that RL begins with",
        )
