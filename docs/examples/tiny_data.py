"""Stand-ins for data of your own: problems.jsonl, dialogues.jsonl and pairs.jsonl. `python tiny_data.py`."""

import json
from pathlib import Path


def write(name: str, records: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))


def dialogue(n: int) -> dict:
    said = {"role": "assistant", "reasoning_content": f"{n % 10} mod 5", "content": str(n % 5)}
    return {"messages": [{"role": "user", "content": f"{n} mod 5"}, said]}


def pair(n: int) -> dict:
    right, wrong = n % 5, (n + 1 + n // 10 % 4) % 5
    return {"prompt": f"{n} mod 5", "chosen": str(right), "rejected": str(wrong)}


write("problems.jsonl", [{"question": f"{n} mod 5", "answer": str(n % 5)} for n in range(400)])
write("dialogues.jsonl", [dialogue(n) for n in range(400)])
write("pairs.jsonl", [pair(n) for n in range(400)])
