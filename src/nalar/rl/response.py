"""What stands behind a prompt, token by token, and where each token came from. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from nalar.engine.sequence import Completion, FinishReason


@dataclass(frozen=True)
class Response:
    """Ids behind a prompt: drawn by the model, or put there (a tool's output, the closing of a long thought)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each id under the policy that drew it, at the temperature of the draw; 0 where none did."""
    drawn: tuple[bool, ...]
    """Which ids the model drew: the loss counts these alone."""
    versions: tuple[int, ...]
    """The policy's version at each id."""
    finish_reason: FinishReason

    @classmethod
    def of(cls, completion: Completion) -> "Response":
        """One completion as a whole response, with log-probabilities under the distribution it was drawn from."""
        logprobs = completion.processed_logprobs or completion.logprobs
        ids, forced = completion.token_ids, set(completion.forced)
        drawn = tuple(i not in forced for i in range(len(ids)))
        return cls(
            token_ids=ids,
            logprobs=tuple(
                logprob if own else 0.0 for logprob, own in zip(logprobs, drawn, strict=True)
            ),
            drawn=drawn,
            versions=(completion.policy_version,) * len(ids),
            finish_reason=completion.finish_reason,
        )

    def then(self, more: "Response") -> "Response":
        """This, and what came after it, which says how it ended."""
        return Response(
            token_ids=self.token_ids + more.token_ids,
            logprobs=self.logprobs + more.logprobs,
            drawn=self.drawn + more.drawn,
            versions=self.versions + more.versions,
            finish_reason=more.finish_reason,
        )

    def then_given(self, token_ids: Iterable[int], version: int) -> "Response":
        """This, and ids that nobody drew; how it ended stays."""
        ids = tuple(token_ids)
        given = Response(
            ids, (0.0,) * len(ids), (False,) * len(ids), (version,) * len(ids), self.finish_reason
        )
        return self.then(given)

    @property
    def num_drawn(self) -> int:
        return sum(self.drawn)

    @property
    def is_whole(self) -> bool:
        """Whether it came to an end, and was not merely left where it was."""
        return self.finish_reason != "abort"

    def __len__(self) -> int:
        return len(self.token_ids)


NOTHING = Response((), (), (), (), "abort")
"""Before the first id: drawing has not come to an end."""
