"""Conversion: a public data set's folder becomes ``images``, ``labels`` and the settings that go with them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rfss_core import __version__
from rfss_core.datasets.layouts import AUTO, choose_layout
from rfss_core.datasets.layouts.frames import frame_file, read_cine
from rfss_core.datasets.layouts.layout import Layout, LayoutCase, Plan, repeated_names
from rfss_core.datasets.layouts.masks import is_nifti, label_map
from rfss_core.datasets.layouts.placing import place
from rfss_core.datasets.layouts.provenance import NAME, Journal
from rfss_core.errors import CaseError, LayoutError
from rfss_core.events import CaseQuarantined, ChunkFinished, EventStream, StageFinished, StageStarted
from rfss_core.imaging.output import write_atomically
from rfss_core.imaging.search import Found, search
from rfss_core.settings.conversion import ConversionSettings

RECEIPT, SETTINGS, METADATA = "source.json", "settings.yaml", "metadata.csv"
_STAGE = "convert"
_SHOWN = 3
_MOST_MEMBERS = 1.1
"""Room left for what the estimate of the disk space does not see."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote."""

    layout: Layout
    folder: Path
    labelled: int
    unlabelled: int
    patients: int
    resumed: int
    """Cases of an earlier call that were found in place."""
    linked: int
    """Files that share their bytes with the data set's."""
    left_out: dict[str, str] = field(default_factory=dict)
    """With ``keep_going``: what was wrong."""


def convert(
    folder: Path,
    out: Path,
    layout: str = AUTO,
    settings: ConversionSettings | None = None,
    events: EventStream | None = None,
) -> Conversion:
    """Convert a public data set's folder.

    Everything that names tell is checked before the first file is written, and labelled cases come first, so that wrong
    masks are found before a large unlabelled part is copied. Written are ``images/NAME`` and ``labels/NAME`` (names
    pair; labels hold the layout's classes), ``settings.yaml`` (classes, patients, CT window; for ``--config``),
    ``metadata.csv`` (the publisher's columns, for ``--metadata`` and ``--filter``), ``provenance.jsonl`` (each case's
    source files with their sha256) and, last, ``source.json``. Only one case is in memory at a time. Called again, it
    goes on where it stopped, redoes what has changed, and removes what is no longer in the source.

    Args:
        folder: the data set, as its publisher ships it.
        out: folder to write.
        layout: its name, or ``auto``.
        settings: frames, links, whether to go on past problems.
        events: told of progress.

    Returns:
        What was written.

    Raises:
        InputNotFoundError: there is no such folder.
        LayoutError: an unknown or unreadable layout, masks that are missing or wrong, or ``out`` holds something else.
        StorageFullError: no space is left.
    """
    settings, events = settings or ConversionSettings(), events or EventStream()
    found = search(str(folder), "data set")
    listing = {name: path for name, path in found.files.items() if "__MACOSX" not in name.split("/")}
    chosen = choose_layout(layout, listing, str(folder))
    plan = chosen.plan(listing, settings.frames)
    problems = _structural(plan, found)
    if problems and not settings.keep_going:
        raise _refusal(chosen, problems)
    about = {"layout": chosen.name, "source": str(found.root), "frames": settings.frames}
    _claim(out, about)
    journal = Journal(out, found.root)
    # Labelled ones first: they can be wrong.
    cases = sorted((case for case in plan.cases if case.name not in repeated_names(plan.cases)), key=_order)
    todo = [case for case in cases if not journal.done(case)]
    _check_space(out, todo, settings.link)
    writer = _Writer(chosen, out, journal, settings.link)
    started = time.perf_counter()
    events.emit(StageStarted(_STAGE, len(cases), len(cases) - len(todo), "cases"))
    wrong: dict[str, str] = {}
    for case in todo:
        if not case.masks and wrong and not settings.keep_going:
            break
        begun = time.perf_counter()
        try:
            writer.write(case)
        except CaseError as error:
            wrong[case.name] = str(error)
            events.emit(CaseQuarantined(case.name, error.reason, str(error)))
        else:
            events.emit(ChunkFinished(_STAGE, case.name, 1, 0.0, time.perf_counter() - begun, 0.0))
    if wrong and not settings.keep_going:
        raise _refusal(chosen, wrong)
    written = [case for case in cases if case.name not in wrong]
    if not written:
        raise _refusal(chosen, problems | wrong)
    journal.close({case.name for case in written})
    _describe(chosen, out, written, about, problems | wrong)
    events.emit(StageFinished(_STAGE, time.perf_counter() - started))
    return Conversion(
        layout=chosen,
        folder=out,
        labelled=sum(bool(case.masks) for case in written),
        unlabelled=sum(not case.masks for case in written),
        patients=len({case.patient for case in written}),
        resumed=len(cases) - len(todo),
        linked=writer.linked,
        left_out=problems | wrong,
    )


class _Writer:
    def __init__(self, layout: Layout, out: Path, journal: Journal, link: bool) -> None:
        self._layout, self._out, self._journal, self._link = layout, out, journal, link
        self.linked = 0
        for part in ("images", "labels"):
            (out / part).mkdir(parents=True, exist_ok=True)

    def write(self, case: LayoutCase) -> None:
        """Write a case's label map, then its image, then its line of provenance."""
        self._forget(case)
        label_file = self._label(case) if case.masks else None
        source = case.image.path
        image_file = f"images/{case.name}{'.nii.gz' if case.image.frame is not None else _suffix(source)}"
        if case.image.frame is None:
            self._place(source, image_file)
        else:
            write_atomically(self._out / image_file, frame_file(read_cine(source), case.image.frame))
        self._journal.add(case, image_file, label_file)

    def _label(self, case: LayoutCase) -> str:
        data = label_map(case, self._layout)
        source = case.masks[0].path
        suffix = _suffix(source) if data is None else (".nii.gz" if is_nifti(source) else ".png")
        name = f"labels/{case.name}{suffix}"
        if data is None:
            self._place(source, name)
        else:
            write_atomically(self._out / name, data)
        return name

    def _forget(self, case: LayoutCase) -> None:
        """Remove what an earlier call wrote under another extension, or as a label that is gone."""
        known = self._journal.known.get(case.name)
        for file in (known.image_file, known.label_file) if known else ():
            if file is not None:
                (self._out / file).unlink(missing_ok=True)

    def _place(self, source: Path, name: str) -> None:
        self.linked += place(source, self._out / name, self._link)


def _structural(plan: Plan, found: Found) -> dict[str, str]:
    problems = dict(plan.problems) | repeated_names(plan.cases)
    problems |= {entry.name: entry.message for entry in found.refused}
    if not any(case.masks for case in plan.cases):
        problems["labels"] = "no image has a mask: RFSS needs a few labelled cases"
    return problems


def _refusal(layout: Layout, problems: dict[str, str]) -> LayoutError:
    listed = list(problems.values())
    more = f"; and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return LayoutError(
        f"{layout.name}: {len(listed)} problem{'s' if len(listed) > 1 else ''}: {'; '.join(listed[:_SHOWN])}{more}. "
        "Mend the folder, or pass --keep-going to convert what can be used"
    )


def _claim(out: Path, about: dict[str, str]) -> None:
    """Take a folder that is new, or that an earlier call for the same data set wrote."""
    if out.exists() and not out.is_dir():
        raise LayoutError(f"'{out}' is a file; name a folder")
    claim = out / RECEIPT
    if claim.is_file():
        try:
            before = json.loads(claim.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LayoutError(f"'{claim}' is damaged; choose another folder") from error
        different = [key for key, value in about.items() if before.get(key) != value]
        if different:
            told = ", ".join(f"{key} '{before.get(key)}'" for key in different)
            raise LayoutError(f"'{out}' holds the conversion of another data set ({told}); choose another folder")
        return
    for part in ("images", "labels", NAME):
        if (out / part).exists():
            raise LayoutError(f"'{out / part}' exists already and is no conversion; choose another folder")
    write_atomically(claim, (json.dumps({**about, "complete": False}, indent=2) + "\n").encode())


def _check_space(out: Path, todo: list[LayoutCase], link: bool) -> None:
    copied = [part for case in todo for part in (case.image, *case.masks) if not (link and part.frame is None)]
    # A frame packs about as well as its series, whose frames share the file's size.
    series = {part.path: part.path.stat().st_size for part in copied}
    needed, free = _MOST_MEMBERS * sum(series.values()), shutil.disk_usage(out).free
    if needed > free:
        raise LayoutError(
            f"the copy needs about {needed / 2**30:.1f} GiB, but '{out}' has {free / 2**30:.1f} GiB free; free some, "
            "choose another disk, or pass --link"
        )


def _describe(
    layout: Layout, out: Path, cases: list[LayoutCase], about: dict[str, str], left_out: dict[str, str]
) -> None:
    imaging: dict[str, Any] = {"classes": dict(layout.classes), "patient_pattern": layout.patient_pattern}
    if layout.window is not None:
        imaging["window"] = list(layout.window)
    if layout.empty_masks:
        imaging["empty_labels"] = "keep"
    head = f"# {layout.title}. Read by: rfss label IMAGES --labels LABELS --config {SETTINGS}\n"
    write_atomically(out / SETTINGS, (head + yaml.safe_dump({"imaging": imaging}, sort_keys=False)).encode())
    columns = sorted({name for case in cases for name in case.columns})
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["name", "modality", "body_part", "split", *columns])
    for case in sorted(cases, key=lambda case: case.name):
        told = (case.name, layout.modality, layout.body_part, case.split)
        rows.writerow([*told, *(case.columns.get(name, "") for name in columns)])
    write_atomically(out / METADATA, table.getvalue().encode())
    receipt = {
        **about,
        "complete": True,
        "title": layout.title,
        "citation": layout.citation,
        "terms": layout.terms,
        "classes": layout.classes,
        "images": len(cases),
        "labels": sum(bool(case.masks) for case in cases),
        "patients": len({case.patient for case in cases}),
        "left_out": left_out,
        "rfss": __version__,
    }
    write_atomically(out / RECEIPT, (json.dumps(receipt, indent=2) + "\n").encode())


def _order(case: LayoutCase) -> tuple[bool, str]:
    return not case.masks, case.name


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
