r"""Segmenters against baselines on the same splits: seeds x segmenters x k over one labelled folder.

Every row is one ``rfss evaluate``: the same seed gives the same support slices and the same test patients to all of
them. Rows of a workspace that were measured before are read from it, so an interrupted benchmark goes on; their speed
is then that of reading and means nothing.

    python benchmarks/baselines.py                          # phantoms (procedural, not patients), a few minutes
    python benchmarks/baselines.py DATA --seeds 0 1 2 --k 8 16 --support-patients 3 --test-patients 6 \
        --segmenters sam2-memory label-fusion unet sam2-points:1 sam2-points:1,1 --out results/name

DATA holds ``images/`` and ``labels/``. Prints a Markdown table (mean and standard deviation over seeds) and ends with
one line of key figures; writes OUT.json (every row with its command) and OUT.md. Exits 1 where ``sam2-memory`` is not
above every baseline that ran beside it without the ground truth, 2 on input that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import tasks  # noqa: F401 - sets the environment's defaults before Prefect and MLflow are imported
from flows.evaluate import Evaluation, evaluate
from flows.options import check_places
from flows.session import command_session
from rfss_core.errors import RfssError
from rfss_core.phantom import write_cohort
from rfss_core.settings import SUPERVISED, LabelSettings, Strategy, load_settings

NO_GROUND_TRUTH = ("label-fusion", "unet")
"""Baselines that ``sam2-memory`` has to beat."""


@dataclass(frozen=True)
class Protocol:
    """What all rows share."""

    images: str
    labels: str
    workspace: str
    preset: str = "tiny"
    support_slices: int = 50
    support_patients: int | None = None
    test_patients: int | None = None
    config: Path | None = None


@dataclass(frozen=True)
class Method:
    """One line of the table before seeds."""

    segmenter: str
    points: str | None
    strategy: str
    k: int

    @property
    def retrieves(self) -> bool:
        """Whether k and strategy matter."""
        return self.segmenter not in {*SUPERVISED, "sam2-points"}

    @property
    def name(self) -> str:
        """What the table calls it."""
        if self.points is None:
            return self.segmenter
        positive, _, negative = self.points.partition(",")
        return f"{self.segmenter} {positive}+" + (f" {negative}-" if negative not in ("", "0") else "")


@dataclass(frozen=True)
class Row:
    """One evaluation."""

    method: Method
    seed: int
    command: str
    result: dict[str, Any]


def methods(segmenters: Iterable[str], strategies: Sequence[str], ks: Sequence[int]) -> list[Method]:
    """Return all methods; k and strategy vary only where they matter.

    Args:
        segmenters: names, for ``sam2-points`` with its points: ``sam2-points:1,1``.
        strategies: of retrieval.
        ks: support slices a query.
    """
    found: dict[Method, None] = {}
    for text in segmenters:
        segmenter, _, points = text.partition(":")
        for strategy in strategies:
            for k in ks:
                method = Method(segmenter, points or None, strategy, k)
                if not method.retrieves:
                    method = Method(segmenter, points or None, strategies[0], ks[0])
                found[method] = None
    return list(found)


def settings_of(method: Method, seed: int, protocol: Protocol) -> LabelSettings:
    """Return the settings of one row."""
    return load_settings(
        {
            "images": protocol.images,
            "labels": protocol.labels,
            "workspace": protocol.workspace,
            "preset": protocol.preset,
            "k": method.k,
            "seed": seed,
            "retrieval": {"strategy": method.strategy, "support_slices": protocol.support_slices},
            "segmentation": {"segmenter": method.segmenter, "points": method.points},
        },
        protocol.config,
    )


def command_of(method: Method, seed: int, protocol: Protocol) -> str:
    """Return the command that gives the same figures."""
    options: dict[str, object] = {
        "--images": protocol.images,
        "--labels": protocol.labels,
        "--segmenter": method.segmenter,
        "--points": method.points,
        "--preset": protocol.preset,
        "--k": method.k,
        "--strategy": method.strategy,
        "--support-slices": protocol.support_slices,
        "--support-patients": protocol.support_patients,
        "--test-patients": protocol.test_patients,
        "--seed": seed,
        "--config": protocol.config,
        "--out": "FILE.json",
    }
    parts = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    return shlex.join(["rfss", "evaluate", *parts])


def measure(protocol: Protocol, chosen: Sequence[Method], seeds: Sequence[int]) -> list[Row]:
    """Evaluate every method at every seed, one seed after another."""
    rows = []
    for seed in seeds:
        for method in chosen:
            settings = settings_of(method, seed, protocol)
            check_places(settings)
            result: Evaluation = evaluate(settings, protocol.test_patients, protocol.support_patients)
            rows.append(Row(method, seed, command_of(method, seed, protocol), result.model_dump(mode="json")))
    return rows


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one record a method: mean and standard deviation over seeds of each class's Dice, mean HD95, speed."""
    found = []
    for method in dict.fromkeys(row.method for row in rows):
        results = [row.result for row in rows if row.method == method]
        dice = {
            name: [r["dice"][name] for r in results if r["dice"].get(name) is not None] for name in results[0]["dice"]
        }
        found.append(
            {
                "method": method.name,
                "strategy": method.strategy if method.retrieves else None,
                "k": method.k if method.retrieves else None,
                "seeds": len(results),
                "dice": {name: statistics.fmean(values) if values else None for name, values in dice.items()},
                "dice_sd": {name: statistics.stdev(v) if len(v) > 1 else None for name, v in dice.items()},
                "hd95": _mean([result["hd95"].get("mean") for result in results]),
                "slices_per_second": _mean([result["slices_per_second"] for result in results]),
                "train_seconds": _mean([result["seconds"].get("train") for result in results]),
            }
        )
    return found


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    classes = list(records[0]["dice"])
    lines = [
        f"| method | retrieval | k | seeds | {' | '.join(f'Dice {name}' for name in classes)} | HD95 mm | slices/s |",
        "|---|---|---|---|" + "---|" * (len(classes) + 2),
    ]
    for record in records:
        scores = []
        for name in classes:
            spread = record["dice_sd"][name]
            scores.append(_text(record["dice"][name], 3) + ("" if spread is None else f" ± {spread:.3f}"))
        cells = [record["method"], record["strategy"] or "-", record["k"] or "-", record["seeds"], *scores]
        cells += [_text(record["hd95"], 1), _text(record["slices_per_second"], 1)]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def missed(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the baselines that no row of ``sam2-memory`` beats, as sentences."""
    ours = [record["dice"]["mean"] or 0.0 for record in records if record["method"] == "sam2-memory"]
    return [
        f"{record['method']} {record['dice']['mean']:.3f} is not below sam2-memory {max(ours):.3f}"
        for record in records
        if ours and record["method"] in NO_GROUND_TRUTH and (record["dice"]["mean"] or 0.0) >= max(ours)
    ]


def main() -> int:
    """Measure, print, write; see the module's text."""
    given = _arguments()
    with tempfile.TemporaryDirectory(prefix="rfss-baselines-") as temporary:
        folder = given.folder
        if folder is None:
            folder = Path(temporary) / "phantoms"
            write_cohort(folder, patients=8, seed=0)
        protocol = Protocol(
            str(folder / "images"),
            str(folder / "labels"),
            str(given.workspace or Path(temporary) / "workspace"),
            given.preset,
            given.support_slices,
            given.support_patients,
            given.test_patients,
            given.config,
        )
        chosen = methods(given.segmenters, given.strategies, given.k)
        try:
            Path(protocol.workspace).parent.mkdir(parents=True, exist_ok=True)
            for method in chosen:
                check_places(settings_of(method, given.seeds[0], protocol))
            with command_session(protocol.workspace, verbose=False):
                rows = measure(protocol, chosen, given.seeds)
        except RfssError as error:
            print(f"baselines: {error}", file=sys.stderr)
            return 2
    records = table(rows)
    print(markdown(records))
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"protocol": _plain(protocol), "table": records, "rows": [asdict(row) for row in rows]}
        given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        given.out.with_suffix(".md").write_text(markdown(records) + "\n", encoding="utf-8")
    problems = missed(records)
    for line in problems:
        print(f"missed: {line}", file=sys.stderr)
    print("; ".join(_figure(record) for record in records))
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", help="holds images/ and labels/ (default: phantoms)")
    parser.add_argument("--segmenters", nargs="+", default=["sam2-memory", "label-fusion", "sam2-points:1"])
    parser.add_argument("--strategies", nargs="+", default=["dino"], choices=get_args(Strategy))
    parser.add_argument("--k", type=int, nargs="+", default=[8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--support-slices", type=int, default=50)
    parser.add_argument("--support-patients", type=int, default=None, help="default: all that are not tested")
    parser.add_argument("--test-patients", type=int, default=None, help="default: 30 %% of all")
    parser.add_argument("--workspace", type=Path, default=None, help="keep embeddings, networks and masks here")
    parser.add_argument("--config", type=Path, default=None, help="YAML file of further settings")
    parser.add_argument("--out", type=Path, default=None, help="write OUT.json and OUT.md")
    return parser.parse_args()


def _figure(record: dict[str, Any]) -> str:
    retrieval = f" ({record['strategy']}, k = {record['k']})" if record["k"] else ""
    return f"{record['method']}{retrieval} {_text(record['dice']['mean'], 3)}"


def _plain(protocol: Protocol) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(protocol).items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _text(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
