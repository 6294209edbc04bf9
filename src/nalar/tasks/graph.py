"""Graph paths: `Edges: A-B, B-C, A-D, ... Give a shortest path from A to C.`, answered by `A-B-C`."""

import heapq
import random
import re
from collections.abc import Mapping
from itertools import pairwise
from string import ascii_uppercase

from nalar.tasks.answers import MAX_CHARS, NOT_READ
from nalar.tasks.config import GraphConfig
from nalar.tasks.family import Family
from nalar.tasks.problem import Problem, Score

Graph = dict[str, dict[str, int]]
"""Length of the edge from a node to each of its neighbours."""

_PATH = re.compile(r"[A-Z](?:(?: ?(?:-{1,2}>?|→|>|,) ?| )[A-Z])*")


def neighbours(edges: Mapping[str, int]) -> Graph:
    """From edges such as `AB`, with their lengths."""
    graph: Graph = {}
    for pair, length in edges.items():
        a, b = pair[0], pair[1]
        graph.setdefault(a, {})[b] = length
        graph.setdefault(b, {})[a] = length
    return graph


def shortest(graph: Graph, start: str, end: str) -> tuple[int, str] | None:
    """Length and nodes of the shortest path, the first in the alphabet of equals; None where there is none."""
    heap, done = [(0, start)], set()
    while heap:
        length, path = heapq.heappop(heap)
        node = path[-1]
        if node == end:
            return length, path
        if node in done:
            continue
        done.add(node)
        for other, step in graph.get(node, {}).items():
            if other not in done:
                heapq.heappush(heap, (length + step, path + other))
    return None


class GraphPath(Family):
    """Shortest paths in a connected graph. Every path as short as the shortest is right.

    The key holds edges and both ends in order; how they are shown makes no other problem.
    """

    id = "graph"
    is_checkable = True

    def __init__(self, config: GraphConfig | None = None) -> None:
        self.settings = config or GraphConfig()
        super().__init__(self.settings)

    def make(self, rng: random.Random) -> Problem | None:
        edges = self._edges(rng)
        start, end = rng.sample(ascii_uppercase[: self.settings.num_nodes], 2)
        found = shortest(neighbours(edges), start, end)
        if found is None or len(found[1]) <= self.settings.min_hops:
            return None
        shown = [pair if rng.random() < 0.5 else pair[::-1] for pair in edges]
        rng.shuffle(shown)
        has_lengths = self.settings.max_length > 1
        lengths = {pair: edges["".join(sorted(pair))] for pair in shown}
        listed = ", ".join(
            f"{p[0]}-{p[1]} {lengths[p]}" if has_lengths else f"{p[0]}-{p[1]}" for p in shown
        )
        told = "Edges and their lengths" if has_lengths else "Edges"
        ends = "".join(sorted(start + end))
        canonical = ",".join(f"{pair}{edges[pair]}" for pair in sorted(edges))
        return Problem(
            task=self.id,
            key=f"graph:{canonical}:{ends}",
            prompt=f"{told}: {listed}. Give a shortest path from {start} to {end}.",
            data={"edges": edges, "start": start, "end": end},
        )

    def _edges(self, rng: random.Random) -> dict[str, int]:
        """A random tree, and edges beyond it."""
        nodes = list(ascii_uppercase[: self.settings.num_nodes])
        rng.shuffle(nodes)
        pairs = {
            "".join(sorted((node, rng.choice(nodes[:i])))) for i, node in enumerate(nodes) if i
        }
        free = [a + b for a in sorted(nodes) for b in sorted(nodes) if a < b and a + b not in pairs]
        pairs |= set(rng.sample(free, min(self.settings.extra_edges, len(free))))
        return {pair: rng.randint(1, self.settings.max_length) for pair in sorted(pairs)}

    def gold(self, problem: Problem) -> str:
        found = shortest(
            neighbours(problem.data["edges"]), problem.data["start"], problem.data["end"]
        )
        assert found is not None, problem
        return "-".join(found[1])

    def score(self, problem: Problem, answer: str) -> Score:
        """Well-formed: letters with `-`, `->`, `→`, commas or spaces between. Correct: a path as short as any."""
        text = answer.strip()
        if len(text) > MAX_CHARS or not _PATH.fullmatch(text):
            return NOT_READ
        path = re.findall("[A-Z]", text)
        graph = neighbours(problem.data["edges"])
        start, end = problem.data["start"], problem.data["end"]
        steps = [graph.get(a, {}).get(b) for a, b in pairwise(path)]
        is_path = (path[0], path[-1]) == (start, end) and None not in steps
        best = shortest(graph, start, end)
        correct = is_path and best is not None and sum(filter(None, steps)) == best[0]
        return Score(correct=correct, well_formed=True, canonical="-".join(path))

    def guess(self, rng: random.Random, problem: Problem) -> str:
        """A walk from the start, to no node twice, begun anew where it is stuck."""
        graph, end = neighbours(problem.data["edges"]), problem.data["end"]
        path = problem.data["start"]
        while path[-1] != end:
            open_nodes = [node for node in graph[path[-1]] if node not in path]
            path = path + rng.choice(open_nodes) if open_nodes else problem.data["start"]
        return "-".join(path)
