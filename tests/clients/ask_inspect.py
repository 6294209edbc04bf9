"""inspect_ai: a task with a tool over chats, and one over responses.

Run inside .venv-clients: URL FOLDER. Prints one JSON line with status, thought and usage of each.
"""

import json
import os
import sys

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def add():
    async def execute(a: int) -> str:
        """Add one.

        Args:
            a: A number.
        """
        return str(a + 1)

    return execute


def summary(log) -> dict:
    (sample,) = log.samples or []
    message = sample.output.choices[0].message
    usage = sample.output.usage
    parts = [] if isinstance(message.content, str) else [part.type for part in message.content]
    return {
        "status": log.status,
        "parts": parts,
        "calls": [
            call.function for m in sample.messages for call in getattr(m, "tool_calls", None) or ()
        ],
        "tokens": [usage.input_tokens, usage.output_tokens, usage.reasoning_tokens],
        "error": None if sample.error is None else sample.error.message,
    }


def main(url: str, folder: str) -> None:
    os.environ["NALAR_API_KEY"], os.environ["NALAR_BASE_URL"] = "none", f"{url}/v1"
    found = []
    for responses_api in (False, True):
        config = GenerateConfig(max_tokens=60, seed=3, extra_body={"thinking_token_budget": 6})
        model = get_model("openai-api/nalar/tiny", config=config, responses_api=responses_api)
        solver = [generate()] if responses_api else [use_tools(add()), generate(tool_calls="none")]
        task = Task(
            dataset=MemoryDataset([Sample(input="say 12", target="12")]),
            solver=solver,
            scorer=includes(),
        )
        found.append(
            summary(evaluate(task, model=model, log_dir=folder, display="none", max_retries=0)[0])
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
