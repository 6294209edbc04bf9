"""The agent loop: a model is asked, its calls are run, and it is asked again with their outputs, until it answers."""

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from nalar.agent.speech import Asked, Call, Message, Piece, Speaker, Turn, Usage
from nalar.config import UserError
from nalar.sandbox.answering import ERROR, Answering

MAX_REFUSED = 3
"""Turns in a row that call beyond the limit: then the loop ends without an answer."""


@dataclass(frozen=True)
class Answered:
    """One reply to a user, over all of its turns."""

    thought: str
    answer: str
    calls: tuple[tuple[Call, str | None], ...]
    """With the output of each; None: there are no tools, and the reply ended with it."""
    finish_reason: str
    """`stop`; `length`: cut by the cap on a turn; `tool_calls`: it waits for tools that there are not; `max_calls`: it
    went on calling; or what the server said."""
    usage: Usage


class Loop:
    """One reply. Iterate over `run` once; `said` grows as turns end, and can be read at any time.

    Thoughts stay in the messages while calls go on: templates that want them (DeepSeek's, Kimi's, ours) find them
    there, and others leave them out.
    """

    def __init__(
        self, speaker: Speaker, messages: Sequence[Message], asked: Asked, answering: Answering
    ) -> None:
        self._speaker, self._messages, self._asked = speaker, list(messages), asked
        self._answering = answering
        self.said: list[Message] = []
        """What goes behind `messages`: the assistant's turns, and outputs of tools."""
        self._calls: list[tuple[Call, str | None]] = []
        self._turns: list[Turn] = []
        self._now: list[Piece] = []

    def run(self) -> Iterator[Piece | Answered]:
        """Pieces of all turns and outputs of all calls, in order; the whole comes last."""
        refused = 0
        while True:
            turn = yield from self._turn()
            if not self._answering.tools:
                # The conversation cannot go on behind a call that nobody answered.
                self._calls += [(call, None) for call in turn.calls]
                turn = dataclasses.replace(turn, calls=())
            self._turns.append(turn)
            self.said.append(turn.message(thinks=self._thinks()))
            self._now = []
            if not turn.calls:
                break
            for call in turn.calls:
                yield self._output(call)
            is_over = len(self._calls) > self._answering.limits.max_calls
            refused = refused + 1 if is_over else 0
            if refused >= MAX_REFUSED:
                turn = dataclasses.replace(turn, finish_reason="max_calls")
                break
        yield self._answered(turn.finish_reason)

    def _thinks(self) -> bool:
        """Whether an empty thought stands in the message: behind calls of a model that thinks it would be missed."""
        return self._asked.thinking is not False and any(turn.calls for turn in self._turns)

    def _turn(self) -> Generator[Piece, None, Turn]:
        """Pieces; returns the turn."""
        try:
            for piece in self._speaker.say([*self._messages, *self.said], self._left()):
                if isinstance(piece, Turn):
                    return piece
                self._now.append(piece)
                yield piece
        except UserError as error:
            if not self._calls:
                raise
            raise UserError(
                at=f"{error.at}, behind {len(self._calls)} calls",
                got=error.got,
                want=error.want,
                hint=error.hint,
            ) from error
        raise RuntimeError("the turn ended without its last piece")

    def _left(self) -> Asked:
        """A thought that goes on behind a call has what is left of its budget, not all of it again."""
        budget = self._asked.thinking_budget
        if budget is None:
            return self._asked
        used = sum(turn.usage.reasoning_tokens for turn in self._turns)
        return dataclasses.replace(self._asked, thinking_budget=max(0, budget - used))

    def _output(self, call: Call) -> Piece:
        before = [output or "" for _, output in self._calls]
        output = self._answering.answer(call.name, call.arguments, before)
        self._take(call, output)
        return Piece("output", output)

    def _take(self, call: Call, output: str) -> None:
        self._calls.append((call, output))
        self.said.append(
            {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": output}
        )

    def _answered(self, finish_reason: str) -> Answered:
        return Answered(
            thought="".join(turn.thought for turn in self._turns),
            answer="".join(turn.answer for turn in self._turns),
            calls=tuple(self._calls),
            finish_reason=finish_reason,
            usage=sum((turn.usage for turn in self._turns), Usage()),
        )

    def break_off(self) -> list[Message]:
        """What was said of a reply that was stopped, as a conversation can go on from: calls that nobody answered are
        answered by an error, and an answer that had begun stands as it is."""
        if self._turns and self._turns[-1].calls:
            answered = {id(call) for call, _ in self._calls}
            for call in self._turns[-1].calls:
                if id(call) not in answered:
                    self._take(call, f"{ERROR}stopped by the user")
        begun = "".join(piece.text for piece in self._now if piece.kind == "answer")
        if begun:
            self.said.append({"role": "assistant", "content": begun})
        self._now = []
        return self.said
