"""Write a cohort of phantoms: ``python -m rfss_core.phantom OUT --patients 12 --labelled 8 --seed 0``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rfss_core.errors import RfssError
from rfss_core.phantom.cohort import write_cohort


def main(arguments: list[str] | None = None) -> int:
    """Write a cohort as the command line asks for; return the exit code (2: bad arguments or an unwritable folder)."""
    parser = argparse.ArgumentParser(
        prog="python -m rfss_core.phantom",
        description="Write procedural cardiac short-axis phantoms (not patients) as NIfTI: OUT/images and OUT/labels.",
    )
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to write; created where missing")
    parser.add_argument("--patients", type=int, default=12, help="phantoms, each in two cardiac phases (default 12)")
    parser.add_argument("--labelled", type=int, default=None, help="phantoms with label maps (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same cohort (default 0)")
    given = parser.parse_args(arguments)
    try:
        images = write_cohort(given.folder, given.patients, given.seed, given.labelled)
    except (RfssError, OSError) as error:
        parser.error(str(error))
    labels = len({path.name for path in images} & {path.name for path in (given.folder / "labels").iterdir()})
    print(
        f"{given.folder}: {given.patients} phantoms (procedural, not patients), {len(images)} images, {labels} labelled"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
