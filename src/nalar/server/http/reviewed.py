"""What the policy makes of a request, and of what the model says to it."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from nalar.policy import OutputReview, Policy, Verdict
from nalar.server.answer import Prepared
from nalar.server.ask import Ended, Message, Piece, Said, Scored, Usage
from nalar.server.dialects.dialect import TextTokenizer
from nalar.server.http.json_text import JsonText


def asked_text(prepared: Sequence[Prepared], tokenizer: TextTokenizer) -> str:
    """All that a request says, its history included: thoughts, calls, tools and schemas are read by the model too."""
    texts = list[str]()
    for one in prepared:
        if one.ask.messages is None:
            texts.append(tokenizer.decode(one.ask.prompt_ids))
        else:
            told = [_with_calls_read(message) for message in one.ask.messages]
            texts += _strings(told, with_names=False)  # whose names are ours
            for tool in one.ask.tools:
                texts += [tool.name, tool.description, *_strings(tool.parameters)]
            texts += _strings([one.ask.template_kwargs, one.ask.response_format.schema])
    return "\n".join(texts)


def _with_calls_read(message: Message) -> Message:
    """Arguments of calls as they are meant: an escape of JSON is the character that it stands for."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = JsonText().feed(arguments)
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": calls}


def _strings(value: Any, *, with_names: bool = True) -> Iterator[str]:
    """All texts in a document, and the names of its fields: those of a schema anybody chooses."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if with_names:
            yield from map(str, value)
        yield from _strings([*value.values()], with_names=with_names)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one, with_names=with_names)


class Reviewed:
    """Lets out of a reply what the policy lets pass; a choice that it stops ends as `content_filter`."""

    def __init__(self, policy: Policy, prepared: Sequence[Prepared]) -> None:
        self._is_json = [
            one.ask.response_format.kind != "text"
            for one in prepared
            for _ in range(one.request.params.n)
        ]
        """Of each choice, whether its answer is JSON, as arguments of calls always are."""
        self._texts = [JsonText() for _ in self._is_json]
        self._reviews: list[OutputReview[Said]] = [policy.stream() for _ in self._is_json]
        self._over: set[int] = set()

    @property
    def verdict(self) -> Verdict | None:
        """The gravest of all choices. None: nothing was found."""
        found = [review.verdict for review in self._reviews if review.verdict.category]
        return min(found, key=lambda verdict: verdict.action != "block", default=None)

    async def said(self, given: AsyncGenerator[Said]) -> AsyncGenerator[Said]:
        """Of all but Usage. Stops reading once every choice is over, which ends the engine's work."""
        async with aclosing(given):
            async for said in given:
                if isinstance(said, Usage) or said.choice in self._over:
                    continue
                for one in await self._passed(said):
                    yield one
                if len(self._over) == len(self._reviews):
                    return

    def _text(self, piece: Piece) -> str:
        """As its reader will have it, who reads JSON: no word hides behind escapes."""
        if piece.kind == "call":
            self._texts[piece.choice] = JsonText()
        if piece.kind == "arguments" or (piece.kind == "answer" and self._is_json[piece.choice]):
            return self._texts[piece.choice].feed(piece.text)
        return piece.text or piece.name

    async def _passed(self, said: Piece | Scored | Ended) -> list[Said]:
        choice = said.choice
        review = self._reviews[choice]
        if isinstance(said, Piece):
            passed = list(await review.feed(said, self._text(said), said.kind))
        elif isinstance(said, Ended):
            self._over.add(choice)
            passed = [*await review.finish(), said]
        else:
            return [said]
        if review.is_blocked:
            self._over.add(choice)
            passed = [one for one in passed if not isinstance(one, Ended)]
            return [*passed, Ended(choice, "content_filter")]
        return passed
