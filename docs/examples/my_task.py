"""Above: name a number above another one, of two digits at most."""


def make(rng):
    """One problem. All randomness comes from rng, a random.Random."""
    n, word = rng.randrange(0, 50), rng.choice(["above", "beyond", "more than", "past"])
    return {
        "prompt": f"{word} {n}",
        "answer": str(n + 1),  # an answer that score() accepts
        "n": n,  # whatever else score() needs, as plain JSON
    }


def score(problem, answer):
    """True or False. problem is the dict that make() gave, answer is any text at all."""
    text = answer.strip()
    return len(text) <= 2 and text.isdecimal() and int(text) > problem["n"]
