import json
from pathlib import Path

import pytest

from nalar.config import UserError
from nalar.model.folder import ModelFolder


def folder(tmp_path: Path, **files: object) -> Path:
    """Files by name, with `_` for the dot; an object is written as JSON."""
    for name, content in ({"config_json": {}} | files).items():
        stem, _, suffix = name.rpartition("_")
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / f"{stem}.{suffix}").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({"eos_token_id": 1}, {}, (1,)),
        ({"eos_token_id": [2, 7]}, None, (2, 7)),
        ({"eos_token_id": 1}, {"eos_token_id": [151645, 151643]}, (151645, 151643)),
        ({"eos_token_id": 1}, {"eos_token_id": 5, "top_p": 0.95}, (5,)),
        ({"eos_token_id": 1}, {"eos_token_id": None}, (1,)),
        ({}, {}, ()),
        ({"eos_token_id": None}, None, ()),
    ],
)
def test_a_response_ends_where_the_makers_say(config, generation, ids, tmp_path):
    files = {} if generation is None else {"generation_config_json": generation}
    read = ModelFolder.read(folder(tmp_path, config_json=config, **files))
    assert read.generation.eos_token_id == ids


def test_generation_settings_come_as_published(tmp_path):
    published = {
        "do_sample": True,
        "temperature": 1,
        "top_k": 20,
        "top_p": 0.8,
        "pad_token_id": 3,
        "repetition_penalty": 1.05,
        "transformers_version": "4.51.0",
    }
    given = ModelFolder.read(folder(tmp_path, generation_config_json=published)).generation
    assert (given.do_sample, given.temperature, given.top_k, given.top_p) == (True, 1.0, 20, 0.8)
    assert (given.pad_token_id, given.bos_token_id) == (3, None)
    assert (given.min_p, given.repetition_penalty) == (None, 1.05)
    assert given.model_extra == {"transformers_version": "4.51.0"}


TEMPLATE = "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("files", "text", "others", "where"),
    [
        ({}, None, {}, None),
        ({"chat_template_jinja": TEMPLATE}, TEMPLATE, {}, "chat_template.jinja"),
        (
            {"tokenizer_config_json": {"chat_template": TEMPLATE}},
            TEMPLATE,
            {},
            "tokenizer_config.json",
        ),
        (
            {"chat_template_jinja": TEMPLATE, "tokenizer_config_json": {"chat_template": "old"}},
            TEMPLATE,
            {},
            "chat_template.jinja",
        ),
        (
            {
                "tokenizer_config_json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "tools"},
                        {"name": "default", "template": TEMPLATE},
                    ]
                }
            },
            TEMPLATE,
            {"tool_use": "tools"},
            "tokenizer_config.json",
        ),
    ],
)
def test_the_chat_template_is_found_where_it_is_published(files, text, others, where, tmp_path):
    template = ModelFolder.read(folder(tmp_path, **files)).chat_template
    if template is None:
        assert text is None
    else:
        assert (template.text, template.others, template.path.name) == (text, others, where)


def test_templates_for_other_uses_are_found_by_their_name(tmp_path):
    more = folder(tmp_path, chat_template_jinja=TEMPLATE) / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("documents")
    template = ModelFolder.read(tmp_path).chat_template
    assert template is not None and template.others == {"rag": "documents"}


def test_a_tokenizer_is_named_only_where_there_is_one(tmp_path):
    assert ModelFolder.read(folder(tmp_path)).tokenizer_json is None
    read = ModelFolder.read(folder(tmp_path, tokenizer_json={}, tokenizer_config_json={"a": 1}))
    assert (read.tokenizer_json, read.tokenizer_config) == (tmp_path / "tokenizer.json", {"a": 1})


@pytest.mark.parametrize(
    ("files", "at", "got"),
    [
        ({"config_json": "[]"}, "config.json", "not a JSON object"),
        ({"config_json": "{"}, "config.json", "not a JSON object"),
        ({"generation_config_json": "7"}, "generation_config.json", "not a JSON object"),
        ({"tokenizer_config_json": "x"}, "tokenizer_config.json", "not a JSON object"),
        (
            {"generation_config_json": {"eos_token_id": "</s>"}},
            "generation_config.json: eos_token_id",
            "'</s>'",
        ),
        ({"config_json": {"eos_token_id": [1, -2]}}, "config.json: eos_token_id", "-2"),
        ({"config_json": {"eos_token_id": True}}, "config.json: eos_token_id", "True"),
        (
            {"generation_config_json": {"temperature": "hot"}},
            "generation_config.json: temperature",
            "'hot'",
        ),
        (
            {"tokenizer_config_json": {"chat_template": 5}},
            "tokenizer_config.json: chat_template",
            "a int",
        ),
        (
            {"tokenizer_config_json": {"chat_template": [{"name": "rag", "template": "x"}]}},
            "tokenizer_config.json: chat_template",
            "rag",
        ),
    ],
)
def test_a_damaged_description_is_bad_input_that_says_where(files, at, got, tmp_path):
    with pytest.raises(UserError) as caught:
        ModelFolder.read(folder(tmp_path, **files))
    assert caught.value.at == str(tmp_path / at)
    assert got in caught.value.got


def test_a_template_that_is_no_text_is_bad_input(tmp_path):
    (folder(tmp_path) / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        ModelFolder.read(tmp_path)


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        ModelFolder.read(tmp_path)
