"""The house: which room may import which (DESIGN.md's table), held over every import, wherever it stands."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "nalar"

LAYERS = {
    0: [
        "config",
        "disk",
        "machine",
        "run",
        "stats",
        "sandbox",
        "endpoint",
        "tasks",
        "plan",
        "policy",
        "agent",
    ],
    1: ["kernels", "dist"],
    2: ["model", "optim", "data"],
    3: ["train", "engine"],  # engine/sequence.py imports no torch and is the engine's all the same
    4: ["rl", "evals", "server"],
    5: ["recipes", "pipeline"],
    6: ["cli"],
    7: ["__main__"],
}
LAYER_OF = {room: layer for layer, rooms in LAYERS.items() for room in rooms}
# Layer 0 has an order of its own: each may import those of a lower rank.
GROUND_RANK = {
    "config": 0,
    "disk": 1,
    "machine": 1,
    "run": 2,
    "stats": 2,
    "sandbox": 2,
    "endpoint": 2,
    "tasks": 3,
    "plan": 3,
    "policy": 3,
    "agent": 3,
}

Import = tuple[int, str]


def module_files(package: Path) -> dict[str, Path]:
    """Dotted name below the package of every module: `model.config`; a package goes by its own name."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """What may import in a file."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call)
    return [n for n in ast.walk(ast.parse(path.read_text(), str(path))) if isinstance(n, kinds)]


def imports(package: Path, module: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    """Every module of the package that a file imports, with the line; functions and TYPE_CHECKING included."""
    inside = f"{package.name}."
    own_package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = own_package[: len(own_package) - node.level + 1]
            base = ".".join([package.name, *filter(None, above)]) if node.level else ""
            base = ".".join(filter(None, [base, node.module or ""]))
            found = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and (
            getattr(node.func, "id", getattr(node.func, "attr", ""))
            in ("import_module", "__import__")
        ):
            found = [
                a.value
                for a in node.args[:1]
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
        else:
            continue
        for name in found:
            if name.startswith(inside):
                target = name.removeprefix(inside)
                # `from nalar.run import Run` names a thing inside a module: walk up to the module.
                while target and target not in modules:
                    target = target.rpartition(".")[0]
                yield node.lineno, target or name.removeprefix(inside).split(".")[0]


def room(module: str) -> str:
    return module.split(".")[0]


def is_room_config(module: str) -> bool:
    """What counts as layer 0 wherever it lies: the config.py of a room, a large config of its own such as r1_config.py,
    and the tables of families."""
    is_config = module.count(".") == 1 and module.endswith((".config", "_config"))
    return is_config or module.startswith("model.families.")


def objection(importer: str, imported: str) -> str | None:
    """Why this import breaks the house; None where it may stand."""
    here, there = room(importer), room(imported)
    if here == there and not (is_room_config(importer) and imported != importer):
        return None
    for name in (here, there):
        if name not in LAYER_OF:
            return f"{name!r} is not in the layer table"
    if is_room_config(importer) and LAYER_OF[here] > 0:
        # It counts as layer 0, but knows only what its room may know, and only what is of layer 0 too.
        is_below = LAYER_OF[there] < LAYER_OF[here] or here == there
        if LAYER_OF[there] > 0 and not (is_room_config(imported) and is_below):
            return "a room's config.py imports layer 0 and configs of lower rooms only"
        return None
    if LAYER_OF[here] == 0:
        if is_room_config(imported) and LAYER_OF[there] > 0:
            return None if GROUND_RANK[here] == 3 else f"{here!r} knows no room's config"
        if LAYER_OF[there] > 0:
            return f"layer 0 imports layer {LAYER_OF[there]}"
        return (
            None
            if GROUND_RANK[there] < GROUND_RANK[here]
            else f"layer 0: {there!r} is not below {here!r}"
        )
    if is_room_config(imported):  # counts as layer 0
        return None
    if LAYER_OF[there] == LAYER_OF[here]:
        return f"{here!r} and {there!r} share layer {LAYER_OF[here]} and do not know each other"
    if LAYER_OF[there] > LAYER_OF[here]:
        return f"layer {LAYER_OF[here]} imports layer {LAYER_OF[there]}"
    return None


def violations(package: Path) -> list[str]:
    modules = module_files(package)
    broken = []
    for module, path in modules.items():
        if module and room(module) not in LAYER_OF:
            broken.append(
                f"{path.relative_to(package)}: {room(module)!r} is not in the layer table"
            )
        for line, imported in imports(package, module, path, modules):
            reason = objection(module, imported) if module else "the package itself imports nothing"
            if reason:
                broken.append(f"{path.relative_to(package)}:{line} imports {imported}: {reason}")
    return broken


def is_torch_free(module: str) -> bool:
    """Layer 0: its rooms, and the config.py of any room."""
    return LAYER_OF.get(room(module)) == 0 or is_room_config(module)


def test_every_import_goes_down_the_house():
    assert violations(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle():
    modules = module_files(PACKAGE)
    graph = {
        module: {name for _, name in imports(PACKAGE, module, path, modules) if name != module}
        for module, path in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {error.args[1]}")


def test_init_files_are_empty():
    assert [str(p) for p in PACKAGE.rglob("__init__.py") if p.read_text().strip()] == []


def test_every_room_is_a_package_with_an_init_file():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_in_the_model_only_parallel_knows_of_dist():
    modules = module_files(PACKAGE)
    knowing = [
        module
        for module, path in modules.items()
        if room(module) == "model"
        and any(room(name) == "dist" for _, name in imports(PACKAGE, module, path, modules))
    ]
    assert set(knowing) <= {"model.parallel"}


def test_layer_0_imports_without_torch():
    names = [
        f"nalar.{module}" for module in module_files(PACKAGE) if module and is_torch_free(module)
    ]
    assert {
        "nalar.config",
        "nalar.run",
        "nalar.stats",
        "nalar.plan.cost",
        "nalar.model.config",
        "nalar.model.families.registry",
    } <= set(names)
    program = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(name + " imports torch")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("importer", "line", "objects"),
    [
        ("rl/loop.py", "from nalar.engine.sequence import Request", False),
        ("rl/loop.py", "from nalar.evals import protocol", True),
        ("engine/runner.py", "import nalar.model.moe", False),
        ("engine/runner.py", "from nalar.train.step import step", True),
        ("model/moe.py", "def f():\n    from nalar.engine.sequence import Request", True),
        ("model/moe.py", "if TYPE_CHECKING:\n    from nalar.engine import sequence", True),
        ("model/moe.py", "from .config import ModelConfig", False),
        ("model/moe.py", "from ..train import step", True),
        ("model/moe.py", "from .. import optim", True),
        ("model/moe.py", "from nalar import train", True),
        ("model/moe.py", "importlib.import_module('nalar.train.step')", True),
        ("plan/model.py", "from nalar.model.config import ModelConfig", False),
        ("plan/model.py", "from nalar.model.moe import MoE", True),
        ("plan/model.py", "from nalar.model.families.llama import LLAMA", False),
        ("model/families/llama.py", "from nalar.model.config import ModelConfig", False),
        ("model/families/llama.py", "from nalar.model.moe import MoE", True),
        ("plan/model.py", "from nalar.run import Run", False),
        ("plan/model.py", "from nalar.tasks import problem", True),
        ("run.py", "from nalar.config import Config", False),
        ("run.py", "from nalar.disk import encode", False),
        ("run.py", "from nalar.stats import Interval", True),
        ("run.py", "from nalar.model.config import ModelConfig", True),
        ("config.py", "from nalar.run import Run", True),
        ("rl/config.py", "from nalar.optim.config import OptimConfig", False),
        ("rl/config.py", "from nalar.plan.cost import PriceConfig", False),
        ("rl/config.py", "from nalar.evals.config import EvalConfig", True),
        ("rl/config.py", "from nalar.model.moe import MoE", True),
        ("rl/config.py", "from nalar.rl.loop import step", True),
        ("optim/config.py", "from nalar.rl.config import RLConfig", True),
        ("pipeline/stages.py", "from nalar.recipes.zero import zero", True),
        ("shed/tools.py", "import math", True),
        ("rl/loop.py", "import nalar.shed.tools", True),
        ("__init__.py", "from nalar.run import Run", True),
    ],
)
def test_the_check_itself_sees_what_it_should(tmp_path, importer, line, objects):
    package = tmp_path / "nalar"
    existing = (
        "config run stats disk plan/cost tasks/problem model/config model/moe model/families/llama optim/config "
        "train/step engine/sequence rl/config rl/loop evals/config evals/protocol recipes/zero __init__"
    )
    for name in existing.split():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (package / importer).parent.mkdir(exist_ok=True)
    (package / importer).write_text(line)
    assert bool(violations(package)) == objects, violations(package)
