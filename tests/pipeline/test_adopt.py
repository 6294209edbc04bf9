"""Published models made ready: folders as transformers writes them, with their own tokenizers and chat templates."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from nalar.config import UserError
from nalar.data.config import FileSource
from nalar.data.dialogue import encode_dialogue, encode_prompt, parse
from nalar.data.template import CHAT_TEMPLATE, SPECIAL_TOKENS
from nalar.data.tokenizer import Tokenizer
from nalar.model.weights import load_model
from nalar.pipeline.adopt import adopted, is_ours, plan_adoption
from nalar.pipeline.base import read_folder
from nalar.pipeline.config import RlRunConfig, SftConfig
from nalar.pipeline.state import Outcome

transformers = pytest.importorskip("transformers")

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
SPLIT = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}


def byte_level(special: tuple[str, ...], *, plain: tuple[str, ...] = ()) -> tokenizers.Tokenizer:
    """A small byte-level BPE whose added tokens stand behind its merges. plain: those that are not special."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["think user Question Answer what is 12\n\n"] * 9, trainer=trainer)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, rstrip=True, normalized=False) for text in plain])
    return backend


def begins_with(backend: tokenizers.Tokenizer, token: str) -> tokenizers.Tokenizer:
    """A tokenizer that puts this before every text."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, backend.token_to_id(token))]
    )
    return backend


def write(
    folder: Path, kind: str, backend: tokenizers.Tokenizer, tokens: dict[str, str], **more: Any
) -> Path:
    """kind: of transformers' classes. tokens: what its tokenizer_config.json says of them."""
    spare = more.pop("spare_rows", 0)
    config = getattr(transformers, f"{kind}Config")(
        **SIZES, vocab_size=backend.get_vocab_size() + spare, **more
    )
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def qwen(folder: Path, *, plain: tuple[str, ...] = (), **more: Any) -> Path:
    backend = byte_level(QWEN, plain=plain)
    return write(folder, "Qwen2", backend, {"eos_token": QWEN[2], "pad_token": QWEN[0]}, **more)


MAKERS = {
    "qwen2.5": lambda folder: qwen(folder, spare_rows=2, tie_word_embeddings=True),
    "qwen3": lambda folder: qwen(folder, plain=("<think>", "</think>"), dtype=torch.bfloat16),
    "llama-3": lambda folder: write(
        folder,
        "Llama",
        begins_with(byte_level(LLAMA), LLAMA[0]),
        {"bos_token": LLAMA[0], "eos_token": LLAMA[2]},
    ),
    "deepseek": lambda folder: write(
        folder,
        "Llama",
        begins_with(byte_level(DEEPSEEK), DEEPSEEK[0]),
        {"bos_token": DEEPSEEK[0], "eos_token": DEEPSEEK[1]},
        spare_rows=40,
    ),
}
KEPT = {
    "qwen2.5": {"<|end|>": QWEN[2]},
    "qwen3": {"<|end|>": QWEN[2]},
    "llama-3": {"<|end|>": LLAMA[2], "<|user|>": LLAMA[0]},
    "deepseek": {"<|end|>": DEEPSEEK[1], "<|user|>": DEEPSEEK[0]},
}
SAID = [
    {"role": "user", "content": "what is 12"},
    {"role": "assistant", "reasoning_content": "twelve, é", "content": "12\n"},
    {"role": "user", "content": " and 34"},
    {"role": "assistant", "content": "34"},
]


@pytest.fixture(scope="module", params=MAKERS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {kind: make(root / kind) for kind, make in MAKERS.items()}


@pytest.fixture(scope="module")
def ready(published, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ready")
    return {kind: adopted(folder, root / kind) for kind, folder in published.items()}


def test_what_was_refused_with_a_hint_is_taken(kind, published, ready):
    with pytest.raises(UserError, match=r"nalar adopt .* TARGET"):
        read_folder(published[kind])
    with pytest.raises(UserError, match="nalar adopt"):
        Tokenizer.load(published[kind])
    model, tokenizer = read_folder(ready[kind])
    assert tokenizer.vocab_size <= model.vocab_size
    assert is_ours(ready[kind]) and adopted(ready[kind], Path("nowhere")) == ready[kind]


def test_their_ends_and_beginnings_keep_their_ids_and_rows(kind, published, ready):
    theirs = tokenizers.Tokenizer.from_file(str(published[kind] / "tokenizer.json"))
    ours, plan = Tokenizer.load(ready[kind]), plan_adoption(published[kind])
    assert plan.renamed == KEPT[kind]
    new = {ours.token_bytes(token_id).decode(): token_id for token_id in plan.added}
    for text in SPECIAL_TOKENS:
        had = theirs.token_to_id(KEPT[kind].get(text, text))
        assert ours.encode(text, allow_special=True) == [new[text] if had is None else had]
        assert (had is None) == (text in new)
    for name in ("config.json", "generation_config.json"):
        said = json.loads((ready[kind] / name).read_text())
        assert (said["eos_token_id"], said["bos_token_id"]) == (ours.end_id, ours.user_id)


def test_weights_stay_and_new_rows_are_as_long_as_those_of_their_words(kind, published, ready):
    before, after = (load_file(one[kind] / "model.safetensors") for one in (published, ready))
    assert before.keys() == after.keys()
    plan = plan_adoption(published[kind])
    for name, old in before.items():
        new = after[name]
        assert new.dtype == old.dtype
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(old, new)
            continue
        kept = [row for row in range(len(old)) if row not in plan.added]
        assert torch.equal(old[kept], new[kept])
        assert len(new) == plan.rows
        for token_id, words in plan.added.items():
            mean = torch.stack([old[i] for i in words]).float().mean(0)
            length = torch.stack([old[i].float().norm() for i in words]).mean()
            torch.testing.assert_close(
                new[token_id].float(), mean / mean.norm() * length, rtol=1e-2, atol=1e-2
            )
            assert not any(torch.equal(new[token_id], row) for row in old[kept])


def test_other_programs_read_the_same_ids_and_logits(kind, ready):
    tokenizer = Tokenizer.load(ready[kind])
    theirs = transformers.AutoTokenizer.from_pretrained(ready[kind])
    ids, _ = encode_dialogue(tokenizer, SAID)
    assert theirs.apply_chat_template(SAID, tokenize=True, return_dict=False) == ids
    assert theirs("what is 12").input_ids == tokenizer.encode("what is 12")
    asked = theirs.apply_chat_template(
        SAID[:1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert asked == encode_prompt(tokenizer, SAID[:1]) == ids[: len(asked)]
    model = transformers.AutoModelForCausalLM.from_pretrained(ready[kind], dtype=torch.float32)
    ours, ids_BT = load_model(ready[kind], dtype=torch.float32), torch.tensor([ids])
    with torch.no_grad():
        logits = ours.logits(ours(ids_BT).states)
        torch.testing.assert_close(logits, model(ids_BT).logits, rtol=1e-4, atol=1e-4)


def test_texts_never_become_marks_and_marks_of_theirs_are_strays(kind, ready):
    tokenizer = Tokenizer.load(ready[kind])
    for text in [*SPECIAL_TOKENS, *QWEN, *LLAMA, *DEEPSEEK, "12 and 34"]:
        ids = tokenizer.encode(text)
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids) == text
    reply = [
        *tokenizer.encode("so"),
        tokenizer.end_think_id,
        *tokenizer.encode("3"),
        tokenizer.end_id,
    ]
    parsed = parse(tokenizer, reply)
    assert (parsed.thought, parsed.answer, parsed.well_formed) == ("so", "3", True)
    if kind != "deepseek":
        stray = tokenizer.encode(LLAMA[1] if kind == "llama-3" else QWEN[1], allow_special=True)
        assert len(stray) == 1 and not parse(tokenizer, [*stray, *reply]).well_formed


@pytest.mark.slow
def test_adapters_teach_it_to_close_a_thought_and_rl_goes_on_from_there(
    ready, make_go, even_task, tmp_path
):
    """The rows of the new marks are frozen under adapters, so where they begin must be a place that can be said."""
    (tmp_path / "even.py").write_text(even_task)
    turn = {"role": "assistant", "reasoning_content": "what is\n", "content": "12"}
    asked = [f"{n % 9 + 1}+{n % 7 + 1}-{n * 67 % 1000}" for n in range(160)]
    lines = [{"messages": [{"role": "user", "content": text}, turn]} for text in asked]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shared = {"threads": 1, "device": "cpu", "lora": {"r": 4, "lora_alpha": 16.0}}
    go = make_go(tmp_path / "runs")
    sft = SftConfig.model_validate(
        shared
        | {
            "model": str(ready["qwen2.5"]),
            "data": FileSource(path=str(tmp_path / "d.jsonl")),
            "cache_dir": str(tmp_path / "cache"),
            "packing": {"step_tokens": 512, "document_tokens": 64},
            "held_out_frac": 0.2,
            "epochs": 12,
            "lr": 0.02,
        }
    )
    taught = go.create("taught", sft)
    assert go.on(taught) is Outcome.FINISHED
    assert taught.read_json("held_out_after.json")["loss"] < 0.5
    rl = {"steps": 1, "max_tokens": 16, "group_size": 4, "prompts_per_step": 4}
    tasks = (str(tmp_path / "even.py"),)
    better = go.create(
        "better",
        RlRunConfig.model_validate(
            shared
            | {
                "model": str(taught.model_dir()),
                "rl": rl | {"tasks": tasks},
                "evals": {"tasks": tasks, "problems": 4, "k": 2, "max_tokens": 16},
            }
        ),
    )
    assert go.on(better) is Outcome.FINISHED
    result = next(iter(better.read_json("results_before.json").values()))
    assert result["well_formed_frac"] > 0.8
    theirs = transformers.AutoTokenizer.from_pretrained(better.path / "model")
    assert theirs.chat_template.strip() == CHAT_TEMPLATE


def test_without_a_word_on_its_tokens_all_marks_are_new(published, tmp_path):
    folder = copy(published["deepseek"], tmp_path)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    plan = plan_adoption(folder)
    assert plan.renamed == {} and len(plan.added) == len(SPECIAL_TOKENS)
    rows = [frozenset(words) for words in plan.added.values()]
    assert len(set(rows)) == len(rows) and all(len(row) > 1 for row in rows)


def test_a_copy_that_is_there_is_not_made_again(published, tmp_path):
    target = adopted(published["qwen2.5"], tmp_path / "ours")
    stamp = (target / "config.json").stat().st_mtime_ns
    assert adopted(published["qwen2.5"], target) == target
    assert (target / "config.json").stat().st_mtime_ns == stamp


def test_what_cannot_be_adopted_is_refused_and_nothing_is_left(published, tmp_path):
    def refused(words: str, folder: Path) -> None:
        with pytest.raises(UserError, match=words):
            adopted(folder, tmp_path / "ours")
        assert not list(tmp_path.glob("*ours*"))

    folder = copy(published["llama-3"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 280}))
    refused("vocab_size|shape", folder)
    folder = copy(published["qwen3"], tmp_path)
    words = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "\u2581a": 1}, merges=[]))
    words.save(str(folder / "tokenizer.json"))
    refused("spells no bytes", folder)
    (folder / "tokenizer.json").unlink()
    refused(r"no tokenizer\.json", folder)


def copy(folder: Path, root: Path) -> Path:
    return Path(shutil.copytree(folder, root / f"copy-{len(list(root.iterdir()))}"))
