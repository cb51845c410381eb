"""What the documents say of the files is what there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_has_its_place_in_the_tree():
    files = [file for package in ("pipeline", "launch", "models") for file in (ROOT / package).rglob("*.py")]
    named = set(re.findall(r"\b\w+\.py\b", ARCHITECTURE))
    shown = {file.name for file in files if file.name != "__init__.py" and "bench" not in file.relative_to(ROOT).parts}
    assert named == shown


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "tests/benchmarks/README.md"]
)
def test_files_that_are_named_are_there(document):
    text = (ROOT / document).read_text()
    named = set(
        re.findall(r"\b(?:pipeline|launch|models|tests|configs|docs)/[\w./-]+\.(?:py|sh|sbatch|md|yaml)\b", text)
    )
    assert [name for name in sorted(named) if "NAME" not in name and not (ROOT / name).is_file()] == []
