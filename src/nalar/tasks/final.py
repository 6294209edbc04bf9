"""The one answer that a text gives: in a box, behind `####`, or the whole of it."""

import re

MAX_TEXT = 20_000
"""Characters of an answer that are looked at at all."""
MAX_FINAL = 500
"""Characters of the final answer in it."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LEAD = re.compile(
    r"(?:so |thus |therefore,? )?(?:the )?(?:final )?answer(?: is)?\s*:?\s*"
    r"|jawaban(?:nya| akhir)?(?: adalah| ialah)?\s*:?\s*",
    re.IGNORECASE,
)
_MATH = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"))


def final_answer(text: str) -> str | None:
    """None where there is none, or more than one: two boxes with different contents are no answer."""
    if len(text) > MAX_TEXT:
        return None
    if _BOX.search(text):
        boxes = boxed(text)
        if boxes is None or len({"".join(box.split()) for box in boxes}) != 1:
            return None
        found = boxes[0].strip()
    elif "####" in text:
        found = text.partition("####")[2]
        found = found.strip()
        if "####" in found or "\n" in found:
            return None
    else:
        found = text.strip()
        found = found[m.end() :] if (m := _LEAD.match(found)) else found
        found = found.removesuffix(".")
    found = _without_dollars(found).strip()
    return found if 0 < len(found) <= MAX_FINAL and "\n" not in found else None


def boxed(text: str) -> list[str] | None:
    """What stands in each `\\boxed{...}`, from the outermost; None where a brace is not closed."""
    found, at = [], 0
    while match := _BOX.search(text, at):
        depth, start = 1, match.end()
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
            if depth == 0:
                break
        else:
            return None
        found.append(text[start:at])
    return found


def _without_dollars(text: str) -> str:
    for before, after in _MATH:
        inner = text.removeprefix(before).removesuffix(after)
        if len(text) - len(inner) == len(before) + len(after) and before not in inner:
            return inner.strip()
    return text
