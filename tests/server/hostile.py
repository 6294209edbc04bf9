"""Bodies that no client in its right mind sends, as many as are wanted, the same for the same seed."""

import json
import random
from collections.abc import Iterator
from typing import Any

USER = {"role": "user", "content": "say 12"}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 4},
    "/v1/completions": {"prompt": "say 12", "max_tokens": 4},
    "/v1/responses": {"input": "say 12", "max_output_tokens": 4},
    "/v1/messages": {"messages": [USER], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": [USER]},
    "/tokenize": {"prompt": "say 12"},
    "/detokenize": {"tokens": [1, 2]},
}
_CONTENT = {
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/tokenize": "prompt",
    "/detokenize": "tokens",
}
"""Where a body says what it is about; elsewhere in `messages`."""
_SAMPLED = tuple(path for path in GOOD if path.startswith("/v1/") and not path.endswith("tokens"))


def bodies(count: int, seed: int = 0) -> Iterator[tuple[str, bytes, str]]:
    """Path, body, and the kind of harm it means; each is to be answered by a 4xx."""
    rng = random.Random(seed)
    paths, kinds = list(GOOD), list(KINDS)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        path = rng.choice(_SAMPLED if kind in _ABOUT_SAMPLING else paths)
        yield path, KINDS[kind](rng, path), kind


def _dumped(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _field(path: str) -> str:
    return _CONTENT.get(path, "messages")


def _deep(rng: random.Random, path: str) -> bytes:
    depth = rng.choice((70, 500, 20_000, 100_000))
    start, end = rng.choice((("[", "]"), ('{"a":', "}")))
    closed = end * depth if rng.random() < 0.7 else ""
    nested = f"{start * depth}1{closed}"
    return _dumped(GOOD[path])[:-1] + f', "x": {nested}}}'.encode()


def _truncated(rng: random.Random, path: str) -> bytes:
    whole = _dumped(GOOD[path])
    return whole[: rng.randrange(len(whole))]


def _bytes(rng: random.Random, path: str) -> bytes:
    return rng.randbytes(rng.choice((1, 7, 300, 5_000))) + b"\xff"


def _broken_utf8(rng: random.Random, path: str) -> bytes:
    bad = rng.choice((b"\xc3\x28", b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"))
    return _dumped(GOOD[path]).replace(b"{", b'{"x": "' + bad + b'", ', 1)


def _surrogate(rng: random.Random, path: str) -> bytes:
    half = rng.choice((r"\ud800", r"\udfff", r"\udc00\ud800", r"a\uD83D b"))
    body = GOOD[path] | {rng.choice(("user", "x", "model")): "HALF"}
    return _dumped(body).replace(b"HALF", half.encode())


def _no_number(rng: random.Random, path: str) -> bytes:
    text = rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 5_000, "0x10"))
    name = rng.choice(("temperature", "seed", "n", "x"))
    return _dumped(GOOD[path])[:-1] + f', "{name}": {text}}}'.encode()


def _no_object(rng: random.Random, path: str) -> bytes:
    return rng.choice(
        (b"", b"[]", b"null", b"3", b'"text"', b"true", b"[{}]", b" " * 1000, b"{}{}")
    )


def _duplicate(rng: random.Random, path: str) -> bytes:
    """Of two values the last counts; here it is one that cannot."""
    bad = rng.choice(("3", "true", "{}", '{"a": []}'))
    return _dumped(GOOD[path])[:-1] + f', "{_field(path)}": {bad}}}'.encode()


def _wrong_type(rng: random.Random, path: str) -> bytes:
    bad = rng.choice((3, -1.5, True, {"a": 1}, [[[]]], [None, 3, {}], [{"role": 3}], [3.5], None))
    body = GOOD[path] | {_field(path): bad}
    return _dumped(body)


def _huge(rng: random.Random, path: str) -> bytes:
    """Beyond the limit of a body, or beyond what the model reads."""
    if path in ("/v1/messages/count_tokens", "/tokenize", "/detokenize"):
        size = 2**20 + 1
        return b'{"x": "' + b"a" * size + b'"}'
    text = "ab 12 " * rng.choice((1_000, 10_000, 200_000))
    if _field(path) == "messages":
        return _dumped(GOOD[path] | {"messages": [{"role": "user", "content": text}]})
    return _dumped(GOOD[path] | {_field(path): text})


def _range(rng: random.Random, path: str) -> bytes:
    name, value = rng.choice(
        (
            ("temperature", -0.1),
            ("temperature", 1e300),
            ("top_p", 0),
            ("top_p", 1.5),
            ("top_k", -7),
            ("min_p", 2),
            ("n", 0),
            ("n", 2**70),
            ("presence_penalty", 1e9),
            ("repetition_penalty", 0),
            ("min_tokens", -1),
            ("min_tokens", 10**9),
            ("priority", 2**80),
            ("stop_token_ids", [2**31]),
            ("stop_token_ids", [-1]),
            ("logit_bias", {"999999": 1}),
            ("logit_bias", {"1": 1e6}),
            ("cache_salt", "s" * 1000),
            ("model", "m" * 100_000),
            ("model", "nobody"),
        )
    )
    return _dumped(GOOD[path] | {name: value})


def _ids(rng: random.Random, path: str) -> bytes:
    ids = rng.choice(([-1], [270, 10**6], [2**63], [1.5], [True, None], [[]], [[1], "a"], ["x", 2]))
    return _dumped(GOOD[path] | {_field(path): ids})


def _roles(rng: random.Random, path: str) -> bytes:
    role = rng.choice(("wizard", "", "USER", "system\u0000", "tool_result", "a" * 10_000, "é"))
    content = rng.choice(("x", [], [{"type": "text", "text": "x"}]))
    message = {"role": role, "content": content}
    field = _field(path)
    return _dumped(GOOD[path] | {field: [message]})


def _parts(rng: random.Random, path: str) -> bytes:
    part = rng.choice(
        (
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            {"type": "text", "text": 3},
            {"type": "text"},
            {"type": ["text"], "text": "x"},
            {"type": "tool_result"},
            {"type": "tool_use", "input": []},
            {"type": {"a": 1}},
        )
    )
    message = {"role": "user", "content": [part]}
    return _dumped(GOOD[path] | {_field(path): [message]})


def _tools(rng: random.Random, path: str) -> bytes:
    tools = rng.choice(
        (
            [{}],
            [3],
            {"a": 1},
            [{"type": "web_search"}],
            [{"type": "function", "function": {"name": ""}, "name": ""}],
            [{"type": "function", "function": {"name": "f", "parameters": 3}, "name": 3}],
        )
    )
    return _dumped(GOOD[path] | {"tools": tools} | {"prompt": []})


KINDS = {
    "deep": _deep,
    "truncated": _truncated,
    "bytes": _bytes,
    "broken UTF-8": _broken_utf8,
    "half a surrogate pair": _surrogate,
    "no number": _no_number,
    "no object": _no_object,
    "duplicate key": _duplicate,
    "wrong type": _wrong_type,
    "huge": _huge,
    "out of range": _range,
    "ids": _ids,
    "roles": _roles,
    "parts": _parts,
    "tools": _tools,
}
_ABOUT_SAMPLING = ("out of range", "tools")
