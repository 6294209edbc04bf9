"""A model that scores: transformers' ...ForSequenceClassification reads its folder and gives its score, and back."""

import json

import pytest
import torch

from nalar.config import UserError
from nalar.kernels.documents import Documents
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, read_config, save_model
from nalar.plan.model import count_parameters

END = 1
IDS = {"eos_token_id": END, "pad_token_id": END, "bos_token_id": 2}
FORMS = ("deepseek_v3", "deepseek_v3-other_order", "qwen2", "qwen3", "qwen3_moe", "llama")


@pytest.fixture
def scoring(tiny_families, random_model):
    """A model of a form with random weights, its head too."""

    def make(form: str) -> Transformer:
        return random_model(tiny_families[form].model_copy(update={"num_labels": 1}))

    return make


def last_score(model: Transformer, ids: list[int]) -> float:
    with torch.no_grad():
        return float(model.scores(model(torch.tensor([ids])).states[0, -1]))


@pytest.mark.parametrize("form", FORMS)
def test_transformers_gives_the_same_score_padded_or_not(form, scoring, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = scoring(form)
    save_model(ours, tmp_path, token_ids=IDS)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["architectures"][0].endswith("ForSequenceClassification")
    assert document["num_labels"] == 1
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert type(theirs).__name__ == document["architectures"][0]
    assert theirs.score.weight.shape == (1, ours.config.hidden_size)
    theirs.eval()
    sequences = [[5, 9, 40, 3, 60, 7, 30], [8, 20, 11]]
    longest = max(map(len, sequences))
    # The end token closes turns and pads: they read the score at the last id that is neither.
    padded = torch.tensor([ids + [END] * (longest + 1 - len(ids)) for ids in sequences])
    with torch.no_grad():
        scores = theirs(padded, attention_mask=(padded != END).long()).logits[:, 0].tolist()
        alone = [float(theirs(torch.tensor([ids])).logits) for ids in sequences]
    expected = [last_score(ours, ids) for ids in sequences]
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert alone == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


@pytest.mark.parametrize("form", ["llama", "deepseek_v3"])
def test_a_folder_that_transformers_wrote_is_read(form, scoring, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = scoring(form)
    (tmp_path / "ours").mkdir()
    save_model(ours, tmp_path / "ours", token_ids=IDS)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    )
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs", scores=True)
    assert again.config.num_labels == 1
    assert last_score(again, [5, 9, 40]) == last_score(ours, [5, 9, 40])


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_comes_back_to_the_bit_and_its_parameters_are_counted(form, scoring, tmp_path):
    model = scoring(form)
    save_model(model, tmp_path, token_ids=IDS)
    again = load_model(tmp_path, scores=True)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert "score.weight" in dict(model.named_parameters())
    assert "lm_head.weight" not in dict(model.named_parameters())
    counted = count_parameters(model.config).total_params
    assert counted == sum(p.numel() for p in model.parameters())


def test_scores_are_of_states_in_float32_and_no_multiplier_of_logits_touches_them(
    tiny_families, random_model
):
    model = random_model(tiny_families["granite"].model_copy(update={"num_labels": 1}))
    assert model.config.logits_scaling != 1
    hidden = model(torch.arange(6), Documents.of([2, 4])).states
    expected = hidden.double() @ model.score.weight.double()[0]
    assert model.scores(hidden).dtype == torch.float32
    torch.testing.assert_close(model.scores(hidden).double(), expected, rtol=1e-5, atol=1e-6)


def test_one_kind_of_head_is_not_taken_for_the_other(
    scoring, tiny_families, random_model, tmp_path
):
    for name in ("scores", "predicts"):
        (tmp_path / name).mkdir()
    save_model(scoring("llama"), tmp_path / "scores", token_ids=IDS)
    save_model(random_model(tiny_families["llama"]), tmp_path / "predicts", token_ids=IDS)
    with pytest.raises(UserError, match="got a model that scores\n  wanted: a model that predicts"):
        load_model(tmp_path / "scores")
    with pytest.raises(UserError, match="got a model that predicts tokens\n  wanted: a model that"):
        load_model(tmp_path / "predicts", scores=True)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"num_labels": 2}, "got 2"),
        ({"num_labels": None, "id2label": {"0": "bad", "1": "good"}}, "got 2"),
        ({"num_labels": None}, "got None"),
    ],
)
def test_a_head_of_several_labels_is_refused(change, shown, scoring, tmp_path):
    save_model(scoring("llama"), tmp_path, token_ids=IDS)
    path = tmp_path / "config.json"
    document = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: v for key, v in document.items() if v is not None}))
    with pytest.raises(UserError, match=shown):
        read_config(tmp_path)


def test_labels_in_a_model_that_predicts_tokens_are_refused(tiny_families, random_model, tmp_path):
    save_model(random_model(tiny_families["llama"]), tmp_path, token_ids=IDS)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_labels": 1}))
    with pytest.raises(UserError, match="num_labels"):
        read_config(tmp_path)
