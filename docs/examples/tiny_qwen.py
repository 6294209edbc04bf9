"""A stand-in for a published model: a folder in the form of Qwen2.5, random weights. `python tiny_qwen.py qwen`."""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import save_model

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write(folder: Path) -> None:
    """Control tokens stand behind the vocabulary, and the embedding has rows to spare, as Qwen2.5 has it."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        ["what is the user and the assistant, 12 mod 5"] * 9, trainer=trainer
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    config = ModelConfig(
        model_type="qwen2",
        vocab_size=320,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        qkv_bias=True,
        n_shared_experts=0,
        kv_lora_rank=None,
        rope_interleave=False,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        initializer_range=0.2,
    )
    model = Transformer(config)
    model.initialize(seed=0)
    folder.mkdir(parents=True)
    save_model(model, folder, token_ids={"eos_token_id": tokenizer.token_to_id("<|im_end|>")})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
