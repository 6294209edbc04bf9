import pytest
from hypothesis import given
from hypothesis import strategies as st

from nalar.config import UserError
from nalar.data.config import DatasetSource, FileSource, ProceduralSource
from nalar.data.source_words import source_of, word_of

PLACES = st.text("abc/.*-_ é", min_size=1).filter(lambda t: t != "procedural")
WEIGHTS = st.floats(min_value=1e-6, max_value=1e6)
SEPARATORS = st.none() | st.text("a,=\\\n\t<|>nt", min_size=1)
FILES = st.builds(
    FileSource,
    path=PLACES,
    weight=WEIGHTS,
    separator=SEPARATORS,
    format=st.sampled_from([None, "text", "jsonl"]),
    field=st.none() | st.just("body"),
    max_records=st.none() | st.integers(1, 10**9),
)
DATASETS = st.builds(
    DatasetSource,
    id=PLACES,
    weight=WEIGHTS,
    split=st.sampled_from(["train", "test[:10]"]),
    subset=st.none() | st.just("en"),
    content=st.sampled_from(["text", "dialogue"]),
)


@given(source=FILES | DATASETS | st.builds(ProceduralSource, weight=WEIGHTS))
def test_a_word_means_the_source_that_it_was_made_of(source) -> None:
    assert source_of(word_of(source)) == source


def test_a_word_says_only_what_is_not_as_usual() -> None:
    assert word_of(FileSource(path="books")) == "books"
    assert word_of(DatasetSource(id="a/b", split="test")) == "hf:a/b,split=test"
    assert word_of(ProceduralSource(weight=0.5)) == "procedural,weight=0.5"
    assert source_of(r"b.txt,separator=\n<|endoftext|>\n") == FileSource(
        path="b.txt", separator="\n<|endoftext|>\n"
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("books,feild=body", "did you mean 'field'"),
        ("procedural,field=body", "one of weight"),
        ("books,weight=0", "weight=0"),
        ("books,weight=nan", "weight=nan"),
        ("books,weight=heavy", "weight=heavy"),
        ("books,format=pdf", "format=pdf"),
        ("books,max_records=0", "max_records=0"),
        ("", "path="),
        ("hf:", "id="),
    ],
)
def test_a_setting_that_cannot_be_is_named(word: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        source_of(word)
    assert said in str(error.value)


def test_a_comma_in_a_path_is_part_of_it() -> None:
    assert source_of("a,b.txt") == FileSource(path="a,b.txt")
    assert source_of("a,b/c=d.txt,weight=2") == FileSource(path="a,b/c=d.txt", weight=2)
