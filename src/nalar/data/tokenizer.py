"""A byte-level BPE tokenizer. Any text can be encoded; the text of special tokens becomes special only on request."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from nalar.config import UserError
from nalar.data import template
from nalar.data.config import TokenizerConfig

# The published pre-tokenizer of the qwen2 family: every digit stands alone, so numbers are spelled out.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORD = re.compile(r"[^\n0-9=+\-*/(),]+")


def byte_of_char() -> dict[str, int]:
    """The byte that each printable stand-in of a byte-level vocabulary means."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


@dataclass(frozen=True)
class ToolIds:
    """The ids between which calls of tools and their outputs stand."""

    call: int
    end_call: int
    output: int
    end_output: int


class Tokenizer:
    """Text to ids and back. Special tokens have the ids 0, 1, ... in the order of `template.SPECIAL_TOKENS`, behind
    them `template.TOOL_TOKENS` where it was trained for tools."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._special = backend
        # A second backend that knows no special tokens: with it `<think>` in a user's text stays seven characters.
        written = backend.to_str()
        plain = json.loads(written)
        self._added = {int(token["id"]): bool(token["special"]) for token in plain["added_tokens"]}
        """Ids whose tokens are texts, not bytes in a byte-level spelling; whether they are special."""
        plain["added_tokens"] = []
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(plain))
        self.vocab_size: int = backend.get_vocab_size()
        vocab = backend.get_vocab()
        ids = {text: vocab[text] for text in template.SPECIAL_TOKENS if text in vocab}
        missing = [text for text in template.SPECIAL_TOKENS if text not in ids]
        if missing:
            raise UserError(
                at="tokenizer",
                got="no " + " ".join(missing),
                want="all special tokens of nalar",
                hint="nalar adopt FOLDER TARGET makes a copy that has them",
            )
        last = max(vocab.values())
        if last >= self.vocab_size:
            raise UserError(
                at="tokenizer",
                got=f"an id {last} among {self.vocab_size}",
                want="ids from 0 on, without gaps",
            )
        self.end_id: int = ids[template.END]
        self.user_id: int = ids[template.USER]
        self.assistant_id: int = ids[template.ASSISTANT]
        self.think_id: int = ids[template.THINK]
        self.end_think_id: int = ids[template.END_THINK]
        tool_ids = [vocab[text] for text in template.TOOL_TOKENS if text in vocab]
        self.tools = ToolIds(*tool_ids) if len(tool_ids) == len(template.TOOL_TOKENS) else None
        """None: this tokenizer knows no tools."""
        self.tool_ids = frozenset(tool_ids if self.tools else ())
        others = {token_id for token_id, is_special in self._added.items() if is_special}
        self.special_ids = frozenset(ids.values()) | self.tool_ids | others
        """Ours, and those that a published tokenizer has beside them."""
        self.stop_ids = (self.end_id, *((self.tools.end_call,) if self.tools else ()))
        """Where the assistant waits for someone else: the end of its turn, or of a call."""
        self._bytes = self._token_bytes()
        self.fingerprint: str = hashlib.sha256(written.encode()).hexdigest()[:32]
        """Two tokenizers with one fingerprint give the same ids."""

    @classmethod
    def train(cls, docs: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
        """Learn merges from documents. The same documents give the same tokenizer."""
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        known = template.SPECIAL_TOKENS + (template.TOOL_TOKENS if config.tools else ())
        specials = [AddedToken(text, special=True, normalized=False) for text in known]
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        pieces = _words(docs) if config.signs_apart else _texts(docs)
        backend.train_from_iterator(pieces, trainer=trainer)
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        return cls(read_backend(folder))

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Of what `to_json` gave."""
        return cls(tokenizers.Tokenizer.from_str(text))

    def to_json(self) -> str:
        """All that decides ids, in one line."""
        written: str = self._special.to_str()
        return written

    def save(self, folder: Path) -> None:
        """Write the files that transformers reads: tokenizer, its config, the chat template."""
        folder.mkdir(parents=True, exist_ok=True)
        known = template.SPECIAL_TOKENS + (template.TOOL_TOKENS if self.tools else ())
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": template.END,
            "pad_token": template.END,
            "additional_special_tokens": list(known[1:]),
            "clean_up_tokenization_spaces": False,
            "chat_template": self.chat_template,
        }
        _write(folder / "tokenizer.json", self._special.to_str(pretty=True))
        _write(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False))
        _write(folder / "chat_template.jinja", self.chat_template)

    @property
    def token_ids(self) -> dict[str, int]:
        """As a model's config names them: every dialogue begins with a user, and ends."""
        return {
            "eos_token_id": self.end_id,
            "pad_token_id": self.end_id,
            "bos_token_id": self.user_id,
        }

    @property
    def chat_template(self) -> str:
        """Jinja, as it lies beside the tokenizer."""
        return template.TOOL_TEMPLATE if self.tools else template.CHAT_TEMPLATE

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of a text. Only with `allow_special` does the text of a special token become its id."""
        backend = self._special if allow_special else self._plain
        return list(backend.encode(text).ids)

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        backend = self._special if allow_special else self._plain
        return [list(encoding.ids) for encoding in backend.encode_batch_fast(list(texts))]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; a special token's are its text, an unknown id's are none."""
        return self._bytes.get(token_id, b"")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Bytes that are no UTF-8, such as a character cut short, become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def _token_bytes(self) -> dict[int, bytes]:
        byte_of, found = byte_of_char(), dict[int, bytes]()
        for text, token_id in self._special.get_vocab().items():
            if token_id in self._added or token_id in self.special_ids:
                found[token_id] = text.encode()
            elif all(char in byte_of for char in text):
                found[token_id] = bytes(byte_of[char] for char in text)
            else:
                raise _not_ours("tokenizer", f"the token {text!r}, which spells no bytes")
        return found


def _words(docs: Iterable[str]) -> Iterable[str]:
    """What stands between line ends, digits and the signs of arithmetic, so that each of these stays a token of its
    own: a mark reads the same whether a line or a thought ends after it.
    """
    for text in _texts(docs):
        yield from _WORD.findall(text)


def _texts(docs: Iterable[str]) -> Iterable[str]:
    """Texts without the special tokens, of which no part is to merge with what stands around them."""
    for doc in docs:
        for special in template.SPECIAL_TOKENS + template.TOOL_TOKENS:
            doc = doc.replace(special, "\n")
        yield doc


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """The library's own, of a folder's tokenizer.json. UserError where there is none that it can read."""
    path = folder / "tokenizer.json"
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            at=str(folder), got="no tokenizer.json", want="a folder with a tokenizer"
        ) from None
    except UnicodeDecodeError as error:
        raise _not_ours(str(path), "bytes that are no UTF-8") from error
    except OSError:
        raise
    except Exception as error:  # the library raises nothing more precise
        raise _not_ours(str(path), f"{type(error).__name__}: {error}") from error


def _not_ours(at: str, got: str) -> UserError:
    return UserError(at=at, got=got, want="a byte-level tokenizer, as nalar, Qwen or Llama 3 have")


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
