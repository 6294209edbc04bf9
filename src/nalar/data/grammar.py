"""What an answer may look like, by JSON schema, regular expression or grammar: masks over ids from llguidance.

That package is optional (`nalar[serve]`) and imported only here.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from nalar.config import UserError

try:
    import llguidance
except ImportError:  # optional
    llguidance = None  # type: ignore[assignment]


class Tokens(Protocol):
    """A tokenizer, as far as it is needed here."""

    vocab_size: int
    end_id: int
    special_ids: frozenset[int]

    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class TokenGrammar:
    """How far one sample has come in a grammar: `Grammar` of the engine."""

    def __init__(self, matcher: "llguidance.LLMatcher") -> None:
        self._matcher = matcher

    def accept(self, token_id: int) -> None:
        """The next id of the answer. One that does not fit is an error at the next `allowed`."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)

    def allowed(self) -> bytes:
        """One bit for each id, the lowest of a byte first. The end of the turn alone once nothing else can follow."""
        if self._matcher.is_error():
            raise UserError(
                at="request.make_grammar",
                got=_first_line(self._matcher.get_error()),
                want="a grammar that can go on, within llguidance's limits",
            )
        return self._matcher.compute_bitmask()


MakeGrammar = Callable[[], TokenGrammar]
"""`Request.make_grammar`: one for each sample, from one compilation."""


class Grammars:
    """Compiles grammars for one tokenizer, whose tables are made once. UserError for what llguidance refuses."""

    def __init__(self, tokenizer: Tokens) -> None:
        if llguidance is None:
            raise UserError(
                at="grammar",
                got="llguidance is not installed",
                want="it, for answers that follow a schema or grammar",
                hint="pip install 'nalar[serve]'",
            )
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=tokenizer.vocab_size)

    def json_schema(self, schema: Mapping[str, object]) -> MakeGrammar:
        """Keywords that llguidance does not know are refused rather than ignored."""
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(dict(schema))
        except (TypeError, ValueError) as error:
            raise _refused("json_schema", str(error)) from error
        return self._compile("json_schema", grammar)

    def regex(self, pattern: str) -> MakeGrammar:
        """The whole answer matches. Syntax of Rust's `regex` crate."""
        return self._compile("regex", llguidance.LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> MakeGrammar:
        """Lark's syntax as llguidance reads it, from `start` on."""
        return self._compile("lark", llguidance.LLMatcher.grammar_from_lark(grammar))

    def _compile(self, kind: str, grammar: str) -> MakeGrammar:
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(kind, matcher.get_error())
        return lambda: TokenGrammar(matcher.deep_copy())


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokens) -> None:
        self._encode = tokenizer.encode
        self.eos_token_id = tokenizer.end_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())


def _refused(kind: str, error: str) -> UserError:
    return UserError(
        at=f"grammar.{kind}", got=_first_line(error), want="one that llguidance can compile"
    )


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]
