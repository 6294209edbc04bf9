import random
from itertools import islice

import pytest

from nalar.data.config import CorpusConfig, TokenizerConfig
from nalar.data.corpora.procedural import documents
from nalar.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        list(islice(documents(CorpusConfig(), random.Random(0)), 1000)), TokenizerConfig()
    )
