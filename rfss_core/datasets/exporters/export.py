"""The export itself: every case of a set, one in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfss_core import __version__
from rfss_core.code import code_version
from rfss_core.datasets.exporters.case import ExportCase, ExportSet
from rfss_core.datasets.exporters.exporter import Exporter, WrittenCase
from rfss_core.datasets.exporters.folder import ExportFolder
from rfss_core.digest import digest_json
from rfss_core.errors import CaseError, InputError
from rfss_core.settings import ExportSettings

FORMAT_VERSION = 1
"""Version of the manifest's format."""


@dataclass(frozen=True)
class LeftOut:
    """A case that has no place in the format."""

    name: str
    reason: str
    """Slug, as in the quarantine."""
    message: str
    """One sentence."""


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    folder: Path
    manifest: Mapping[str, Any]
    """As ``rfss-export.json`` holds it."""
    left_out: tuple[LeftOut, ...]
    resumed: int
    """Cases that an earlier try had written."""
    existed: bool
    """The same export stood here already; nothing was written."""

    def count(self, label_source: str) -> int:
        """Return the number of exported cases whose label map comes from there."""
        return sum(case["label_source"] == label_source for case in self.manifest["cases"])


def export_cases(
    content: ExportSet,
    exporter: Exporter,
    out: Path,
    settings: ExportSettings,
    done: Callable[[ExportCase], None] = lambda _: None,
    begun: Callable[[], None] = lambda: None,
) -> ExportReport:
    """Export a set of cases.

    The folder appears at its place when all is written. An export that was interrupted goes on when it is started
    again with the same content and settings.

    Args:
        content: the cases.
        exporter: the format.
        out: folder to write.
        settings: what the content was chosen by.
        done: called after each case.
        begun: called when nothing forbids the export and the first case is next.

    Raises:
        InputError: the folder is taken, no case can be exported, or the format cannot hold this set.
        CorruptStoreError: the same export stands there, with files that changed.
        StoreError: the folder cannot be written.
    """
    plan = dict(exporter.plan(content))
    mark = _fingerprint(content, settings, plan)
    folder = ExportFolder(exporter.target(out, content), mark, code_version("datasets", "imaging"))
    existing = folder.finished()
    if existing is not None:
        return ExportReport(folder.target, existing, _left_out(existing), len(existing["cases"]), True)
    written, left_out, resumed = [], [], 0
    with folder.open():
        begun()
        for case in content.cases:
            known = folder.written(case.id)
            if known is not None:
                written.append(WrittenCase(case, *known))
                resumed += 1
            else:
                try:
                    files = exporter.write_case(case, folder.partial)
                except CaseError as error:
                    left_out.append(LeftOut(case.name, error.reason, str(error)))
                else:
                    written.append(WrittenCase(case, folder.record(case.id, files), files.detail))
            done(case)
        if not written:
            raise InputError(f"no case can be exported as {settings.format}; first reason: {left_out[0].message}")
        exporter.finish(written, content, folder.partial)
        manifest = folder.publish(
            _manifest(content, settings, plan, written, left_out), {path for case in written for path in case.files}
        )
    return ExportReport(folder.target, manifest, tuple(left_out), resumed, False)


def _fingerprint(content: ExportSet, settings: ExportSettings, plan: Mapping[str, Any]) -> str:
    return digest_json(
        {
            "format": FORMAT_VERSION,
            "settings": settings.model_dump(mode="json"),
            "dataset": [content.name, content.digest],
            "classes": {str(value): name for value, name in content.classes.items()},
            "cases": [[case.id, case.label_source, case.part, case.label_digest] for case in content.cases],
            "plan": plan,
        }
    )


def _manifest(
    content: ExportSet,
    settings: ExportSettings,
    plan: Mapping[str, Any],
    written: list[WrittenCase],
    left_out: list[LeftOut],
) -> dict[str, Any]:
    return {
        "manifest_format": FORMAT_VERSION,
        "format": settings.format,
        "rfss": __version__,
        "settings": settings.model_dump(mode="json"),
        "dataset": {"name": content.name, "digest": content.digest, "fingerprint": content.meta.get("fingerprint")},
        "classes": {str(value): name for value, name in sorted(content.classes.items())},
        "plan": dict(plan),
        "cases": [
            {
                "case": each.case.id,
                "name": each.case.name,
                "patient": each.case.patient,
                "label_source": each.case.label_source,
                "part": each.case.part,
                "decision": each.case.decision,
                "predicted_dice": each.case.predicted_dice,
                "lower": each.case.lower,
                "detail": dict(each.detail),
                "files": dict(each.files),
            }
            for each in written
        ],
        "left_out": [vars(entry) for entry in left_out],
    }


def _left_out(manifest: Mapping[str, Any]) -> tuple[LeftOut, ...]:
    return tuple(LeftOut(**entry) for entry in manifest["left_out"])
