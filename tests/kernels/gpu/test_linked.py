"""A kernel that begins before the one in front of it is through: what would be a race nowhere but on a GPU."""

import ast
from pathlib import Path

import pytest

from nalar.kernels import switch

pytestmark = pytest.mark.few(3)

FOLDER = Path(switch.__file__).parent / "gpu"


def kernels():
    """Functions that take LINKED, by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [arg.arg for arg in node.args.args] if isinstance(node, ast.FunctionDef) else ()
            if "LINKED" in names and node.name != "wait":
                found[f"{path.stem}.{node.name}"] = node
    return found


KERNELS = kernels()


@pytest.mark.parametrize("name", KERNELS)
def test_a_linked_kernel_waits_before_it_reads_or_writes(name):
    kernel = KERNELS[name]
    calls = [node for node in ast.walk(kernel) if isinstance(node, ast.Call)]
    named = [(ast.unparse(call.func), call.lineno) for call in calls]
    [waits] = [line for name, line in named if name == "wait"]
    assert all(line > waits for name, line in named if name in ("tl.load", "tl.store"))
    # By every program: not within a branch, and none has left before.
    assert any(
        isinstance(node, ast.Expr) and ast.unparse(node) == "wait(LINKED)" for node in kernel.body
    )
    leaves = [node.lineno for node in ast.walk(kernel) if isinstance(node, ast.Return)]
    assert all(line > waits for line in leaves)


def test_what_is_launched_linked_is_known_to_this_test():
    launches = sum(
        path.read_text(encoding="utf-8").count("**linked(") for path in FOLDER.glob("*.py")
    )
    assert len(KERNELS) == launches
