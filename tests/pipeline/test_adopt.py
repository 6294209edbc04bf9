"""A checkpoint of somebody else's is taken in: our tokens get rows, and all else stays as it was."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from nalar.config import UserError
from nalar.data.dialogue import encode_prompt
from nalar.data.tokenizer import Tokenizer
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model
from nalar.pipeline.adopt import adopted, is_ours
from nalar.pipeline.base import read_folder

TEXT = "Question: what is 1 + 2? Answer: I think it is 3.\n\n" * 8


def foreign(folder: Path, *, rows: int, tied: bool, extra: tuple[str, ...] = ()) -> None:
    """As others publish: a byte-level tokenizer with special tokens of its own, and a template of its own."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\w+|\s|."), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet)
    backend.train_from_iterator([TEXT], trainer)
    names = ("<|im_start|>", "<|im_end|>", *extra)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    config = ModelConfig(
        model_type="qwen2",
        vocab_size=backend.get_vocab_size() + rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_shared_experts=0,
        kv_lora_rank=None,
        num_key_value_heads=1,
        head_dim=8,
        qkv_bias=True,
        rope_interleave=False,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
    )
    model = Transformer(config)
    model.initialize(seed=0)
    folder.mkdir()
    save_model(model, folder, token_ids={"eos_token_id": 1})
    (folder / "tokenizer.json").write_text(backend.to_str())
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [0, 2, 40])
def test_our_tokens_get_rows_and_all_else_stays(rows, tied, tmp_path):
    folder, target = tmp_path / "theirs", tmp_path / "ours"
    foreign(folder, rows=rows, tied=tied)
    assert not is_ours(folder)
    with pytest.raises(UserError):
        read_folder(folder)
    assert adopted(folder, target) == target
    config, tokenizer = read_folder(target)
    before, after = load_model(folder), load_model(target)
    known = before.config.vocab_size
    assert config.vocab_size == max(known, tokenizer.vocab_size)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    count = theirs.get_vocab_size()
    for name, tensor in before.state_dict().items():
        mine = after.state_dict()[name]
        has_rows = "embed_tokens" in name or "lm_head" in name
        assert torch.equal(
            mine[:count] if has_rows else mine, tensor[:count] if has_rows else tensor
        )
    assert tokenizer.encode("what is 1 + 2?") == theirs.encode("what is 1 + 2?").ids
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "what is 1?"}])
    assert set(ids) & set(range(count, tokenizer.vocab_size))
    words = theirs.encode("\nQuestion:").ids
    table = after.model.embed_tokens.weight
    assert torch.allclose(table[tokenizer.user_id], table[words].mean(0), atol=1e-6)
    assert len({tokenizer.end_id, tokenizer.user_id, tokenizer.think_id}) == 3


def test_tokens_that_they_have_already_keep_their_rows(tmp_path):
    foreign(tmp_path / "theirs", rows=8, tied=False, extra=("<think>", "</think>"))
    before = load_model(tmp_path / "theirs")
    target = adopted(tmp_path / "theirs", tmp_path / "ours")
    tokenizer, after = Tokenizer.load(target), load_model(target)
    row = tokenizer.think_id
    assert torch.equal(after.model.embed_tokens.weight[row], before.model.embed_tokens.weight[row])


def test_what_is_ours_or_was_adopted_is_left_as_it_is(tmp_path):
    foreign(tmp_path / "theirs", rows=8, tied=False)
    target = adopted(tmp_path / "theirs", tmp_path / "ours")
    assert is_ours(target) and adopted(target, tmp_path / "again") == target
    stamp = (target / "config.json").stat().st_mtime_ns
    assert adopted(tmp_path / "theirs", target) == target
    assert (target / "config.json").stat().st_mtime_ns == stamp
    assert not (tmp_path / "again").exists()


def test_a_tokenizer_that_cannot_be_read_is_refused_and_nothing_is_left(tmp_path):
    foreign(tmp_path / "theirs", rows=8, tied=False, extra=("<｜begin▁of｜>",))
    with pytest.raises(UserError, match="byte-level"):
        adopted(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        adopted(tmp_path / "theirs", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
