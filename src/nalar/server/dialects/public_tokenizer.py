"""The tokenizer of a public checkpoint: its tokenizer.json as it stands, and the same without special tokens."""

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from nalar.config import UserError
from nalar.data.tokenizer import byte_of_char

_CONTROL = ("<|", "<｜")
"""What the text of control tokens begins with; some checkpoints do not call them special."""


class PublicTokenizer:
    """Text to ids and back. Of the added tokens some are special, whatever the checkpoint calls them: control tokens,
    marks that are known, and those that stand in the chat template. The others, such as runs of blanks or HTML tags,
    are text."""

    def __init__(
        self,
        path: Path,
        *,
        end_ids: Sequence[int],
        end: str | None,
        chat_template: str,
        marks: Collection[str],
    ) -> None:
        """end_ids and end: what ends a turn, as two files say it. UserError where nothing does, and where the file is
        no tokenizer."""
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(written))
            added = [token for token in written.get("added_tokens", []) if token["content"]]
            special = [t for t in added if _is_special(t, chat_template) or t["content"] in marks]
            self._plain = _without(written, special)
        except OSError as error:
            raise UserError(at=str(path), got=str(error), want="a tokenizer.json") from error
        except Exception as error:  # the library raises nothing more precise
            got = f"{type(error).__name__}: {error}"[:200]
            raise UserError(at=str(path), got=got, want="a tokenizer.json") from error
        self.added = {t["content"]: int(t["id"]) for t in special}
        """Text and id of each special token."""
        self.swallows = {
            t["content"]: (bool(t.get("lstrip")), bool(t.get("rstrip"))) for t in special
        }
        """Whether blanks before and behind a special token are part of it."""
        self.special_ids = frozenset(self.added.values())
        vocab = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max([*vocab.values(), self._backend.get_vocab_size() - 1]) + 1
        self._bytes = _bytes_of(vocab, written, {t["content"]: t["id"] for t in added})
        named = (self._backend.token_to_id(end),) if end else ()
        self.end_ids = tuple(dict.fromkeys(i for i in (*end_ids, *named) if i is not None))
        if not self.end_ids:
            raise UserError(
                at=str(path.parent),
                got="no eos_token_id in generation_config.json or config.json, and no eos_token",
                want="a token that ends a turn",
            )
        self.end_id = self.end_ids[0]

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Ids of a text, without what a checkpoint puts around texts. Special tokens only with `allow_special`."""
        backend = self._backend if allow_special else self._plain
        return list(backend.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; a special token's are its text, an unknown id's are none."""
        return self._bytes.get(token_id, b"")

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")


def _without(written: dict[str, Any], left_out: Sequence[dict[str, Any]]) -> tokenizers.Tokenizer:
    """The tokenizer without some of its added tokens, and without those that would not keep their ids then."""
    kept = [token for token in written.get("added_tokens", []) if token not in left_out]
    while True:
        backend = tokenizers.Tokenizer.from_str(json.dumps({**written, "added_tokens": kept}))
        same = [token for token in kept if backend.token_to_id(token["content"]) == token["id"]]
        if same == kept:
            return backend
        kept = same


def _is_special(token: dict[str, Any], chat_template: str) -> bool:
    text = token["content"]
    if not text.strip():
        return False
    return bool(token.get("special")) or text.startswith(_CONTROL) or text in chat_template


def _bytes_of(
    vocab: dict[str, int], written: dict[str, Any], added: dict[str, int]
) -> dict[int, bytes]:
    if "ByteLevel" in _kinds(written.get("decoder")):
        byte_of = byte_of_char()
        found = {
            token_id: bytes(byte_of[c] for c in text)
            if all(c in byte_of for c in text)
            else text.encode("utf-8", "replace")
            for text, token_id in vocab.items()
        }
    else:
        found = {token_id: _sentencepiece(text) for text, token_id in vocab.items()}
    return found | {token_id: text.encode("utf-8", "replace") for text, token_id in added.items()}


def _kinds(decoder: Any) -> set[str]:
    """Types of a decoder and of those it is made of."""
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*map(_kinds, decoder.get("decoders", [])))


def _sentencepiece(text: str) -> bytes:
    """`▁` is a blank, `<0x0A>` a byte."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            pass
    return text.replace("▁", " ").encode("utf-8", "replace")
