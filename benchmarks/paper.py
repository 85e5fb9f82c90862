r"""The paper's tables and figure: `rfss study` over the shipped studies, with stated targets.

    python benchmarks/paper.py                                       # study `quick` on phantoms, a few minutes
    python benchmarks/paper.py --full DATA --out results/NAME        # all tables and the figure; hours, resumable
    python benchmarks/paper.py --full DATA --studies table-3 figure-4 --config FILE.yaml --out results/NAME

DATA holds ``images/`` and ``labels/`` (default: ``$RFSS_DATA/acdc``, else phantoms, which are procedural and no
patients). Prints every table and ends with one line of key figures. The targets are about agreement in kind with the
paper: retrieval above random at k = 8, Dice that grows with k, and RFSS above label fusion of what it retrieves; claims
beyond these are printed with their verdict and miss nothing. Exits 1 where a target is missed, 2 on input that cannot
be used.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tasks  # noqa: F401 - sets the environment's defaults before Prefect and MLflow are imported
from flows.session import command_session
from flows.study import StudyOutcome, place_of, study
from rfss_core.errors import RfssError
from rfss_core.phantom import write_cohort
from rfss_core.settings import read_mapping
from rfss_core.store.files import Files
from rfss_core.study import load_study, plan_study

QUICK = ("quick",)
FULL = ("table-3", "figure-4", "table-1", "beyond", "larger-test-set", "table-2")
TARGETS = (
    "Retrieval is above random at k = 8",
    "Dice grows from k = 2 to 16",
    "Dice grows from k = 2 to 8",
    "RFSS is above label fusion of what it retrieves",
)
"""Claims that the benchmark states as targets, where a study makes them."""


def run(given: argparse.Namespace, folder: Path, out: Path) -> list[StudyOutcome]:
    """Carry the studies out on one folder, and print each table when it is there."""
    overrides: dict[str, Any] = {
        "images": str(folder / "images"),
        "labels": str(folder / "labels"),
        "preset": given.preset,
        "seeds": given.seeds,
        "settings": {} if given.config is None else read_mapping(given.config, "configuration file"),
    }
    chosen = [load_study(name, overrides) for name in given.studies or (FULL if given.full else QUICK)]
    workspace = place_of(Files(out))
    for one in chosen:
        plan_study(one, workspace)
    found = []
    with command_session(workspace, verbose=False) as console:
        for one in chosen:
            found.append(study(one, str(out)))
            console.print(found[-1].table, highlight=False, soft_wrap=True, markup=False)
    return found


def main() -> int:
    """Measure and print; see the module's text."""
    given = _arguments()
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="rfss-paper-") as temporary:
            folder = given.folder
            if folder is None and given.full and "RFSS_DATA" in os.environ:
                folder = Path(os.environ["RFSS_DATA"]) / "acdc"
            if folder is None:
                folder = Path(temporary) / "phantoms"
                write_cohort(folder, patients=10, seed=0)
            outcomes = run(given, folder, given.out or Path(temporary) / "study")
    except RfssError as error:
        print(f"paper: {error}", file=sys.stderr)
        return 2
    verdicts = [(f"{one.name}: {text}", holds) for one in outcomes for text, holds in one.claims.items()]
    missed = [text for text, holds in verdicts if not holds and text.split(": ", 1)[1] in TARGETS]
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    print(
        "; ".join(f"{text}: {'yes' if holds else 'no'}" for text, holds in verdicts)
        + f"; {sum(one.rows for one in outcomes)} rows in {(time.monotonic() - started) / 60:.1f} minutes"
    )
    return 1 if missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", help="holds images/ and labels/")
    parser.add_argument("--full", action="store_true", help=f"studies {', '.join(FULL)} instead of quick")
    parser.add_argument("--studies", nargs="+", default=None, help="names or YAML files, instead of either")
    parser.add_argument("--preset", default=None, help="default: the studies' (tiny)")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="default: the studies'")
    parser.add_argument("--config", type=Path, default=None, help="YAML file of settings that all rows share")
    parser.add_argument("--out", type=Path, default=None, help="keep rows, tables and plots here; resumes from it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
