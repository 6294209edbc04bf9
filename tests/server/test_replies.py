"""Events as bytes."""

import pytest

from nalar.server.ask import Piece
from nalar.server.http.replies import PlainTexts, event
from nalar.server.wire.chat import ChatRequest, ChatWriter


@pytest.mark.parametrize("reasoning_key", [False, True])
def test_an_event_put_together_is_the_one_encoded_whole(reasoning_key):
    asked = ChatRequest.of({"messages": [], "n": 2, "stream_options": {"include_usage": True}})
    writer = ChatWriter('id"\\', 1, "m\u00e9", None, asked, reasoning_key)
    made = []

    def document(piece):
        made.append(piece)
        return writer.chunk(list(writer.choices(piece)))

    plain = PlainTexts(document)
    for text in ("", "ab", 'q"\\/', "\0\n\x7f\u2028", "caf\u00e9 \U0001f600"):
        for choice in range(2):
            for kind, call in (("thought", 0), ("answer", 0), ("arguments", 0), ("arguments", 1)):
                piece = Piece(choice, kind, text, call, token_ids=(1, 2))
                whole = event(writer.chunk(list(writer.choices(piece))))
                assert plain.event(piece) == whole
    assert len(made) == 8
