import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nalar.config import UserError
from nalar.data.config import TokenizerConfig
from nalar.data.dialogue import Parser
from nalar.data.stopping import StopStrings
from nalar.data.tokenizer import Tokenizer

# Merges such as "bc", " ab" and "éa", but none for the characters of three and four bytes.
TOKENIZER = Tokenizer.train(
    ["abcab abc bca éab éa aé\n\n"] * 50, TokenizerConfig(vocab_size=5 + 256 + 20)
)
TEXTS = st.text("abc é日🙂\n", max_size=12)


def bytewise(text):
    """Ids of single bytes, so that no character of several bytes comes in one piece."""
    byte_ids = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.vocab_size)}
    return [byte_ids[bytes([byte])] for byte in text.encode()]


def read(ids):
    """The text without an incomplete character at the end, and with one."""
    parser = Parser(TOKENIZER, thinking=False)
    for token_id in ids:
        parser.feed(token_id)
    complete = parser.result().answer
    parser.flush()
    return complete, parser.result().answer


@settings(deadline=None)
@given(
    pieces=st.lists(st.tuples(TEXTS, st.booleans()), max_size=6),
    stops=st.lists(st.text("abc é日🙂\n", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_the_text_ends_before_the_first_stop_string_wherever_tokens_are_cut(pieces, stops):
    ids = [
        i for text, whole in pieces for i in (TOKENIZER.encode(text) if whole else bytewise(text))
    ]
    stopper = StopStrings(TOKENIZER, stops)
    full = "".join(text for text, _ in pieces)
    ends = [full.index(s) + len(s) for s in stops if s in full]
    shown = ""
    for end in range(1, len(ids) + 1):
        complete, text = read(ids[:end])
        if stopper(ids[:end]):
            want = min(text.index(s) for s in stops if s in text)
            assert text[: len(text) - stopper.num_cut(ids[:end])] == text[:want]
            assert text[:want].startswith(shown)
            assert len(read(ids[: end - 1])[0]) < min(ends) <= len(text)
            return
        assert not any(s in complete for s in stops)
        now = complete[: len(complete) - stopper.num_held(ids[:end])]
        assert now.startswith(shown)  # nothing is taken back
        held = complete[len(now) :]
        assert not held or any(s.startswith(held) for s in stops)
        shown = now
    assert not ends


def test_a_stop_string_across_tokens_is_found_with_the_token_that_ends_it():
    ids = bytewise("x日y🙂z")
    stopper = StopStrings(TOKENIZER, ["日y🙂"])
    assert [stopper(ids[:end]) for end in range(1, 11)] == [False] * 8 + [True, False]
    assert stopper.num_cut(ids[:9]) == 3
    # After x, then a byte of 日 at a time, y, and a byte of 🙂 at a time.
    assert [stopper.num_held(ids[:end]) for end in range(1, 9)] == [0, 0, 0, 1, 2, 2, 2, 2]


def test_what_comes_with_the_stop_string_is_cut_too():
    long = max(range(TOKENIZER.vocab_size), key=lambda i: len(TOKENIZER.token_bytes(i)) * (i > 4))
    text = TOKENIZER.token_bytes(long).decode()
    assert len(text) >= 3
    ids = [*TOKENIZER.encode("zz"), long]
    assert StopStrings(TOKENIZER, [text[1]]).num_cut(ids) == len(text) - text.index(text[1])


def test_the_earliest_of_several_counts():
    stopper = StopStrings(TOKENIZER, ["c", "bc", "abc"])
    assert stopper.num_cut(bytewise("zabc")) == 3


def test_stop_strings_do_not_reach_across_a_special_token():
    think = TOKENIZER.end_think_id
    stopper = StopStrings(TOKENIZER, ["ab", "</think>"])
    assert not stopper([*bytewise("a"), think, *bytewise("b")])
    assert not stopper([think])
    assert stopper.num_held([*bytewise("a"), think]) == 0
    assert stopper([think, *bytewise("ab")])
    assert stopper(bytewise("</think>"))  # what somebody spells out is text


def test_only_the_end_of_the_output_is_read():
    class Counted(list):
        reads = 0

        def __reversed__(self):
            for token_id in super().__reversed__():
                Counted.reads += 1
                yield token_id

    ids = Counted(bytewise("b" * 10_000))
    stopper = StopStrings(TOKENIZER, ["cab", "ca"])
    stopper(ids)
    stopper.num_held(ids)
    assert Counted.reads <= 6


def test_nothing_to_stop_at_is_an_error():
    for strings in ([], ["a", ""]):
        with pytest.raises(UserError, match="none of them empty"):
            StopStrings(TOKENIZER, strings)
