import json
import shutil

import pytest

from nalar.cli.main import main
from nalar.config import ConfigError, UserError
from nalar.data.config import TokenizerConfig
from nalar.data.tokenizer import Tokenizer
from nalar.engine.config import SpeculationConfig
from nalar.engine.sequence import Request, SamplingParams
from nalar.evals.config import EvalConfig
from nalar.model.config import ModelConfig
from nalar.model.transformer import Transformer
from nalar.model.weights import load_model, save_model
from nalar.pipeline.sampler import load_sampler, measure
from nalar.tasks.countdown import Countdown


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that has learned nothing, as a Hugging Face folder."""
    tokenizer = Tokenizer.train(["make 24 from 3 8 9"] * 4, TokenizerConfig(vocab_size=262))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=128,
    )
    path = tmp_path_factory.mktemp("model")
    model = Transformer(config)
    model.initialize(seed=0)
    save_model(model, path, token_ids={"eos_token_id": tokenizer.end_id})
    tokenizer.save(path)
    return path


def test_a_model_on_disk_is_measured_the_same_each_time(folder):
    config = EvalConfig(problems=3, k=2, max_tokens=8)
    results = [
        measure(load_sampler(folder), Countdown(), config, split="valid", seed=1) for _ in range(2)
    ]
    assert results[0] == results[1]
    assert (results[0].n, results[0].k) == (3, 2)


@pytest.mark.parametrize("method", ["mtp", "ngram"])
def test_a_sampler_guesses_where_it_is_asked_to(folder, tmp_path, method):
    shutil.copytree(folder, tmp_path / "model")
    deep = load_model(folder).config.model_copy(update={"num_nextn_predict_layers": 1})
    model = Transformer(deep)
    model.initialize(seed=0)
    save_model(model, tmp_path / "model", token_ids={"eos_token_id": 0})
    request = Request((5, 6, 5, 6, 5), SamplingParams(max_tokens=40, temperature=0))
    speculation = SpeculationConfig(method=method, num_speculative_tokens=2)
    guessing = load_sampler(tmp_path / "model", speculation=speculation).engine
    plain = load_sampler(tmp_path / "model").engine
    assert guessing.generate([request])[0][0].token_ids == plain.generate([request])[0][0].token_ids
    assert guessing.speculated.drafted > 0 == plain.speculated.drafted
    if method == "mtp":
        with pytest.raises(ConfigError, match="num_nextn_predict_layers"):
            load_sampler(folder, speculation=speculation)


def test_eval_prints_the_figures_of_each_task(folder, capsys):
    flags = ["--problems", "3", "--k", "2", "--max-tokens", "8", "--json"]
    assert main(["eval", str(folder), "--task", "chain_sum", *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"schema_version", "chain_sum"}
    assert document["chain_sum"]["n"] == 3
    assert len(document["chain_sum"]["pass_at_1"]["ci95"]) == 2


def test_greedy_is_one_sample_a_problem(folder, capsys):
    flags = ["--problems", "2", "--greedy", "--max-tokens", "4", "--json"]
    assert main(["eval", str(folder), "--task", "countdown", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["countdown"]["k"] == 1


def test_eval_takes_settings_files_of_problems_and_tasks_of_ones_own(folder, tmp_path, capsys):
    problems = [{"question": f"{i}+{i}?", "answer": str(2 * i)} for i in range(4)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, problems)))
    (tmp_path / "mine.py").write_text(
        "def make(rng):\n    n = rng.randrange(10**6)\n    return {'prompt': f'{n}?', 'answer': str(n)}\n"
        "def score(problem, answer):\n    return answer == problem['answer']\n"
    )
    words = [
        "arithmetic,max_digits=1,max_terms=2",
        f"{tmp_path}/sums.jsonl,split=test",
        f"{tmp_path}/mine.py",
    ]
    flags = ["--problems", "3", "--k", "2", "--max-tokens", "8", "--json"]
    assert main(["eval", str(folder), "--task", *words, *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document)[1:] == words
    assert all(document[word]["n"] == 3 for word in words)
    train = f"{tmp_path}/sums.jsonl,split=train"
    assert main(["eval", str(folder), "--task", train, *flags]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["got"] == "no problem in the split test"


def test_chat_streams_the_same_reply_for_the_same_seed(folder, capsys):
    command = ["chat", str(folder), "--prompt", "make 24\udcff", "--max-tokens", "12", "--json"]
    replies = []
    for _ in range(2):
        assert main(command) == 0
        replies.append(json.loads(capsys.readouterr().out))
    assert replies[0] == replies[1]
    assert replies[0]["finish_reason"] in ("stop", "length")
    assert replies[0]["tokens"] <= 12


def test_a_prompt_that_is_too_long_is_said_so(folder, capsys):
    assert main(["chat", str(folder), "--prompt", "9" * 200, "--max-tokens", "8"]) == 2
    assert "wanted: fewer than 128" in capsys.readouterr().err


def test_a_tokenizer_with_ids_that_the_model_lacks_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    Tokenizer.train(["make 24 from 3 8 9"] * 4, TokenizerConfig(vocab_size=264)).save(
        tmp_path / "model"
    )
    with pytest.raises(UserError, match="264 ids and a model of 262"):
        load_sampler(tmp_path / "model")
