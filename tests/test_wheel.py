"""An installed package has all that a checkout has: each command's help, the demo's steps, recipes and scripts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ["train.epochs=1", "schedule.warmup_epochs=0", "train.global_batch=20", "tracking=none"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which pip has installed the wheel, and nothing it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=300)
    return folder / "site"


def run(site: Path, where: Path, *words: str | Path) -> str:
    """What a command of the installed package prints, run in an empty folder."""
    variables = os.environ | {"PYTHONPATH": str(site), "PYTHON": sys.executable, "NPROC": "1"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=where,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_command_helps(installed, tmp_path):
    commands = [file.stem for file in (installed / "launch").glob("*.py") if "Parser(" in file.read_text()]
    assert {"pack", "lint", "train", "evaluate", "export", "bench", "draw"} <= set(commands)
    for name in commands:
        if name != "command":
            assert f"launch.{name}" in run(installed, tmp_path, sys.executable, "-m", f"launch.{name}", "--help")


@pytest.mark.slow
def test_the_steps_of_the_demo(installed, tmp_path):
    where = run(installed, tmp_path, sys.executable, "-c", "import configs, launch, pipeline; print(pipeline.__file__)")
    assert where.startswith(str(installed))
    python = [sys.executable, "-m"]
    run(installed, tmp_path, *python, "launch.draw", "images", "--train", "60", "--validation", "20")
    run(installed, tmp_path, *python, "launch.pack", "images", "packed", "--workers", "1")
    sets = [f"data.{name}=packed/{name}" for name in ("train", "validation")]
    config = "configs/demo.yaml"  # is not here, but in the package
    script = installed / "launch" / "single_node.sh"
    assert "done: runs/demo" in run(installed, tmp_path, "bash", script, config, *sets, *SHORT)
    told = run(installed, tmp_path, *python, "launch.evaluate", "runs/demo", "--views", "centre,ten")
    assert "written     runs/demo/evaluation.json" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "packed", "runs"]


@pytest.mark.slow
def test_recipes_and_scripts_are_there(installed):
    for folder, pattern in (("configs", "*.yaml"), ("launch", "*.sh"), ("launch", "*.sbatch")):
        names = {path.name for path in (ROOT / folder).glob(pattern)}
        assert names
        assert {path.name for path in (installed / folder).glob(pattern)} == names
    assert os.access(installed / "launch" / "single_node.sh", os.X_OK)
    assert (installed / "pipeline" / "evaluation" / "imagenet_synsets.txt").is_file()
    assert not (installed / "tests").exists()


@pytest.mark.slow
def test_a_recipe_here_goes_before_the_packages_own(installed, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("data: {sclae: 1}\n")
    with pytest.raises(AssertionError, match="sclae is no known key"):
        run(installed, tmp_path, sys.executable, "-m", "launch.train", "configs/demo.yaml", "--check")
