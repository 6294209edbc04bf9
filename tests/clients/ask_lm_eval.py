"""lm-eval over local JSON: options scored by `local-completions`, answers written by `local-chat-completions`.

Run inside .venv-clients: URL FOLDER. Prints one JSON line: log-probabilities of every option, and what was answered.
"""

import json
import sys
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

DOCS = [
    {"q": "say 12 is", "options": ["34", "ab 5", "7"], "gold": 0},
    {"q": "5+6-7", "options": ["89", "is say"], "gold": 1},
]
SCORED = """
task: scored
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: options
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{options[gold]}}}}"
generation_kwargs: {{until: ["zz"], max_gen_toks: 40, chat_template_kwargs: {{enable_thinking: false}}}}
metric_list: [{{metric: exact_match}}]
"""


def main(url: str, folder: Path) -> None:
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, text in (("scored", SCORED), ("written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    shared = {"tokenizer_backend": "auto", "max_length": 512, "model": "tiny"}

    def evaluated(model: str, path: str, task: str, **more: object) -> list[dict]:
        found = simple_evaluate(
            model=model,
            model_args=shared | {"base_url": url + path} | more,
            tasks=[task],
            task_manager=tasks,
            bootstrap_iters=0,
            apply_chat_template=model.endswith("chat-completions"),
        )
        return sorted(found["samples"][task], key=lambda sample: sample["doc_id"])

    samples = evaluated("local-completions", "/v1/completions", "scored", batch_size=2)
    scores = [[entry[0] for entry in sample["resps"]] for sample in samples]
    written = evaluated(
        "local-chat-completions", "/v1/chat/completions", "written", tokenizer_backend=None
    )
    answers = [sample["resps"][0][0] for sample in written]
    print(json.dumps({"docs": DOCS, "scores": scores, "answers": answers}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
