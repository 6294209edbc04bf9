"""How one family of models writes dialogues: messages to ids, ids to thought, answer and calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nalar.config import UserError
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import ThinkingParams
from nalar.model.folder import ModelFolder
from nalar.server.ask import Message, ToolSpec
from nalar.server.dialects.mark_table import MarkTable
from nalar.server.dialects.marks import NALAR
from nalar.server.dialects.own import OwnWriter
from nalar.server.dialects.reader import Prompt, Reader, random_id


class TextTokenizer(Protocol):
    """Text to ids and back."""

    vocab_size: int
    special_ids: frozenset[int]
    """Ids that no text of users becomes."""
    end_id: int
    """Ends the assistant's turn."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def decode(self, ids: Sequence[int], /) -> str: ...


class Writer(Protocol):
    """Renders messages."""

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        thinking: bool | None,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        kwargs: Mapping[str, Any],
    ) -> Prompt: ...


@dataclass(frozen=True)
class Dialect:
    """One family's way with one tokenizer."""

    tokenizer: TextTokenizer
    table: MarkTable
    stop_ids: tuple[int, ...]
    """Behind each of these the assistant's turn is over."""
    writer: Writer

    @property
    def name(self) -> str:
        return self.table.family.name

    @classmethod
    def of(cls, folder: ModelFolder) -> "Dialect":
        """Ours where the tokenizer is, else by the marks of the chat template; `plain` where it has nobody's."""
        return cls.of_own(Tokenizer.load(folder.path))

    @classmethod
    def of_own(cls, tokenizer: Tokenizer) -> "Dialect":
        special = {tokenizer.token_bytes(i).decode(): i for i in tokenizer.special_ids}
        table = MarkTable.of(NALAR, special, silent=tokenizer.special_ids, ends=(tokenizer.end_id,))
        return cls(tokenizer, table, tokenizer.stop_ids, OwnWriter(tokenizer))

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        thinking: bool | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Ids of a conversation up to where the assistant speaks. Texts never become special ids.

        thinking: None: as the template has it. continue_final_message: the last message is the assistant's and is not
        closed; add_generation_prompt then says nothing. kwargs: variables of the template. UserError for what the
        template refuses, and for tools where it has none.
        """
        if tools and self.table.family.calls is None:
            raise UserError(
                at="tools",
                got=f"{len(tools)} for a model whose chat template has no calls that are known",
                want="no tools, or a model of a family in docs/dialects.md",
            )
        return self.writer.prompt(
            messages,
            tools,
            thinking,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            kwargs=kwargs or {},
        )

    def thinking_params(self, budget_tokens: int | None = None) -> ThinkingParams | None:
        """None where thoughts have no ids of their own: the engine can neither limit those nor keep a grammar out."""
        start, end = self.table.id_of("think"), self.table.id_of("end_think")
        if start is None or end is None:
            return None
        return ThinkingParams(start_id=start, end_id=end, budget_tokens=budget_tokens)

    def reader(
        self,
        prompt: Prompt,
        *,
        with_tools: bool,
        stop: Sequence[str] = (),
        choice: int = 0,
        make_id: Callable[[], str] = random_id,
    ) -> Reader:
        """Of one choice."""
        return Reader(
            self.table,
            self.tokenizer,
            prompt,
            with_tools=with_tools,
            stop=stop,
            choice=choice,
            make_id=make_id,
        )
