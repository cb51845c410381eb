"""Who imports whom: launch -> pipeline -> models, in no circle, and other packages where they belong."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("launch", "pipeline", "models")
LEVELS = {"models": 0, "pipeline": 1, "launch": 2}
# Within the pipeline, from the ground up; what is not named stands between data and the tasks.
ROOMS = ("pipeline.data", "pipeline.evaluation", "pipeline.tasks")
ALONE = {
    "deepspeed": {"pipeline.engine", "pipeline.bench.step", "pipeline.bench.turns"},
    "nvidia.dali": {"pipeline.data.decoding.dali"},
    "wandb": {"pipeline.tracking.wandb"},
}


def modules() -> dict[str, Path]:
    files = [file for package in OURS for file in (ROOT / package).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(file: Path, name: str) -> set[str]:
    """The modules that a file imports, in functions too; not those that only types, or a run as a command, need."""
    tree, found = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


MODULES = modules()
IMPORTED = {name: imports(file, name) for name, file in MODULES.items()}
GRAPH = {name: {other for other in found if other in MODULES and other != name} for name, found in IMPORTED.items()}


def test_nothing_that_ships_imports_tests():
    assert {name for name, found in IMPORTED.items() if any(other.split(".")[0] == "tests" for other in found)} == set()


def test_imports_point_one_way():
    wrong = [
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if LEVELS[other.split(".")[0]] > LEVELS[name.split(".")[0]]
    ]
    assert wrong == []


def test_within_the_pipeline_too():
    def room(name: str) -> int | None:
        return next((number for number, prefix in enumerate(ROOMS) if name.startswith(prefix)), None)

    wrong = [
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if (low := room(name)) is not None and (high := room(other)) is not None and high > low
    ]
    assert wrong == []


def test_there_is_no_circle():
    packages = {name for name in MODULES if MODULES[name].name == "__init__.py"}
    left = {name: others - packages for name, others in GRAPH.items() if name not in packages}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert left == {}


@pytest.mark.parametrize("package", ALONE)
def test_other_packages_stay_where_they_belong(package):
    users = {
        name
        for name, found in IMPORTED.items()
        if any(other == package or other.startswith(f"{package}.") for other in found)
    }
    assert {name for name in users if not name.startswith("pipeline.bench")} == {
        name for name in ALONE[package] if not name.startswith("pipeline.bench")
    }
