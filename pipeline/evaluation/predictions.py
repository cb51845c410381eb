"""The per-image file: what the network said of every image, in the order of the ids.

In: outcomes, the index, names. Out: CSV, or Parquet if the file's name ends so: a row an image and view. An image that
could not be decoded has a row without classes.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.index import Index
from pipeline.errors import UserError
from pipeline.evaluation.outcomes import NO_CLASS, TOP, Outcomes
from pipeline.files import AGAIN, room, whole

COLUMNS = (
    *("id", "key", "view", "label", "label_name", "label_probability"),
    *(f"{what}_{place}" for place in range(1, TOP + 1) for what in ("class", "name", "probability")),
)


def check(path: Path) -> None:
    """Refuse what could not be written, before anything is scored."""
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--save-predictions {path}: give a name that ends in .csv or .parquet")
    require_file("--save-predictions", path)
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise UserError(
                f"--save-predictions {path}: Parquet needs pyarrow. Install it: .venv/bin/pip install -c "
                f"constraints.txt -e '.[parquet]', or write .csv"
            ) from None


def require_file(flag: str, path: Path) -> None:
    """Raises UserError if no file can be made there; folders on the way are made when it is written."""
    home = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: no file can be written there. Give another name")


def write(outcomes: Outcomes, index: Index, names: Sequence[str], path: Path) -> None:
    """Write it, whole or not at all; `names[output]` is the name of an output. Raises UserError on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = _rows(outcomes, index, names)
    with room(path, 0, AGAIN), whole(path) as temporary:
        if path.suffix == ".csv":
            with open(temporary, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                writer.writerows(rows)
        else:
            import pyarrow
            import pyarrow.parquet

            columns = {name: list(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)}
            pyarrow.parquet.write_table(pyarrow.table(columns), temporary)


def _rows(outcomes: Outcomes, index: Index, names: Sequence[str]) -> Iterator[list]:
    labels, keys = outcomes.labels.tolist(), [index.key_of(sample) for sample in range(len(index))]
    for view, outcome in outcomes.views.items():
        classes, probabilities = outcome.classes.tolist(), outcome.probabilities.tolist()
        of_label = outcome.label_probability.tolist()
        for sample, scored in enumerate(outcomes.scored.tolist()):
            row: list = [sample, keys[sample], view, labels[sample], names[labels[sample]]]
            row.append(_rounded(of_label[sample]) if scored else None)
            for output, probability in zip(classes[sample], probabilities[sample], strict=True):
                known = scored and output != NO_CLASS
                row += [output, names[output], _rounded(probability)] if known else [None] * 3
            yield row


def _rounded(probability: float) -> float:
    """To 7 digits, which is all that a network's float32 holds."""
    return float(f"{probability:.7g}")
