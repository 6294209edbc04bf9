"""How one family of models writes dialogues: messages to ids, ids to thought, answer and calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nalar.config import UserError
from nalar.data.template import SPECIAL_TOKENS
from nalar.data.tokenizer import Tokenizer
from nalar.engine.sequence import ThinkingParams
from nalar.model.folder import ModelFolder
from nalar.server.ask import GrammarSpec, Message, ResponseFormat, ToolChoice, ToolSpec
from nalar.server.dialects.grammars import grammar_of
from nalar.server.dialects.mark_table import MarkTable, roles_of
from nalar.server.dialects.marks import NALAR, family_of
from nalar.server.dialects.own import OwnWriter
from nalar.server.dialects.public import TemplateWriter
from nalar.server.dialects.public_tokenizer import PublicTokenizer
from nalar.server.dialects.reader import Prompt, Reader, random_id
from nalar.server.dialects.sandbox import Template


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

    @classmethod
    def of(cls, folder: ModelFolder) -> "Dialect":
        """Ours where the tokenizer is, else by the marks of the chat template; `plain` where it has nobody's.

        UserError where there is no tokenizer.json, or one that cannot be read.
        """
        if folder.tokenizer_json is None:
            raise UserError(
                at=str(folder.path), got="no tokenizer.json", want="a folder with a tokenizer"
            )
        tokenizer = _own_tokenizer(folder)
        return cls.of_own(tokenizer) if tokenizer else cls.of_public(folder)

    @classmethod
    def of_own(cls, tokenizer: Tokenizer) -> "Dialect":
        special = {tokenizer.token_bytes(i).decode(): i for i in tokenizer.special_ids}
        table = MarkTable.of(NALAR, special, silent=tokenizer.special_ids, ends=(tokenizer.end_id,))
        return cls(tokenizer, table, tokenizer.stop_ids, OwnWriter(tokenizer))

    @classmethod
    def of_public(cls, folder: ModelFolder) -> "Dialect":
        assert folder.tokenizer_json is not None
        chat = folder.chat_template
        text = chat.text if chat else ""
        family = family_of(text)
        tokens = _token_texts(folder.tokenizer_config)
        tokenizer = PublicTokenizer(
            folder.tokenizer_json,
            end_ids=folder.generation.eos_token_id,
            end=tokens.get("eos_token"),
            chat_template=text,
            marks={mark for mark, _ in roles_of(family)},
        )
        stop_ids = tokenizer.end_ids
        table = MarkTable.of(family, tokenizer.added, silent=tokenizer.special_ids, ends=stop_ids)
        writer: Writer = _NoTemplate(folder)
        if chat is not None:
            template = Template(text, at=str(chat.path))
            writer = TemplateWriter(tokenizer, table, template, tokens)
        return cls(tokenizer, table, stop_ids, writer)

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
        if thinking and not self.knows_thoughts:
            raise UserError(
                at="thinking",
                got="on, for a model whose thoughts have no marks that are known",
                want="no word on thinking, or a model of a family in docs/dialects.md",
            )
        return self.writer.prompt(
            messages,
            tools,
            thinking,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            kwargs=kwargs or {},
        )

    @property
    def knows_thoughts(self) -> bool:
        return "think" in {*self.table.of_id.values(), *self.table.of_text.values()}

    def thinking_params(self, budget_tokens: int | None = None) -> ThinkingParams | None:
        """None where thoughts have no ids of their own: the engine can neither limit those nor keep a grammar out."""
        start, end = self.table.id_of("think"), self.table.id_of("end_think")
        if start is None or end is None:
            return None
        return ThinkingParams(start_id=start, end_id=end, budget_tokens=budget_tokens)

    def grammar(
        self,
        tools: Sequence[ToolSpec],
        choice: ToolChoice,
        response_format: ResponseFormat,
        parallel: bool = True,
    ) -> GrammarSpec | None:
        """What holds behind the thought: `Request.make_grammar`, with thinking_params beside it. None: anything."""
        return grammar_of(self.table, tools, choice, response_format, parallel=parallel)

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


class _NoTemplate:
    """A checkpoint without a chat template: prompts can be given as ids alone."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder

    def prompt(self, *_args: object, **_settings: object) -> Prompt:
        raise UserError(
            at="messages",
            got=f"a model without a chat template, {self._folder.path.name}",
            want="a prompt, at /v1/completions",
        )


def _own_tokenizer(folder: ModelFolder) -> Tokenizer | None:
    """Special tokens of ours, at our places; None: it is somebody else's."""
    try:
        tokenizer = Tokenizer.load(folder.path)
    except UserError:
        return None
    ours = range(len(SPECIAL_TOKENS))
    return (
        tokenizer
        if tokenizer.encode("".join(SPECIAL_TOKENS), allow_special=True) == [*ours]
        else None
    )


def _token_texts(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the tokens that templates have variables for."""
    texts = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        entry = tokenizer_config.get(name)
        text = entry.get("content") if isinstance(entry, Mapping) else entry
        if isinstance(text, str):
            texts[name] = text
    return texts
