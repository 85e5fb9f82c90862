"""What the commands print when they end: short tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rfss_core.figures import interval, number
from tasks.summary import IntervalPart, Summary

if TYPE_CHECKING:
    from rfss_core.datasets.exporters import ExportReport
    from rfss_core.datasets.layouts.conversion import Conversion
    from rfss_core.datasets.review import ReviewCase
    from rfss_core.study import Evaluation
    from tasks.review import ReviewImport
    from tasks.status import Status
    from tasks.worklist import Selection


def show_summary(console: Console, summary: Summary) -> None:
    """Print the end of ``rfss label``."""
    table = Table(title=f"Held-out quality of {summary.dataset.name}", title_justify="left")
    for heading in ("class", "Dice", "95 % interval", "HD95 mm", "label fusion"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, dice in summary.held_out_dice.items():
        distance, floor = summary.held_out_hd95.get(name), summary.label_fusion_dice.get(name)
        bounds = f"{interval(dice.ci_low, dice.ci_high)} (n = {dice.n})"
        table.add_row(name, _mean(dice), bounds, _mean(distance, 1), _mean(floor))
    console.print(table)
    cases, decisions = summary.cases, summary.decisions
    console.print(
        f"cases: {cases.labelled} labelled ({cases.support} support, {cases.held_out} held out"
        f"{f', {cases.reviewed} reviewed' if cases.reviewed else ''}), "
        f"{cases.unlabelled} labelled by us, {cases.quarantined} set aside; {summary.slices} slices\n"
        f"decisions: {decisions.accept} accept, {decisions.review} review, {decisions.reject} reject",
        highlight=False,
    )
    for warning in summary.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False)
    for reason in summary.gate:
        console.print(f"gate: {escape(reason)}", highlight=False)
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in summary.seconds.items() if stage != "total")
    console.print(f"seconds: {summary.seconds['total']:.1f} ({seconds})", highlight=False)
    colour = "green" if summary.dataset.status == "accepted" else "yellow"
    version = f" version {summary.dataset.version}" if summary.dataset.version else ""
    console.print(
        f"data set [bold]{summary.dataset.name}[/]{version}: [{colour}]{summary.dataset.status}[/], "
        f"digest {summary.dataset.digest[:12]}, fingerprint {summary.fingerprint[:12]}",
        highlight=False,
    )
    if summary.dataset.status == "rejected":
        console.print("[yellow]the quality gate failed[/]: all is recorded, nothing is promoted (exit code 3)")


def show_evaluation(console: Console, result: Evaluation, out: Path) -> None:
    """Print the end of ``rfss evaluate``."""
    table = Table(title=f"{result.segmenter}, {result.strategy}, k = {result.k}", title_justify="left")
    for heading in ("class", "Dice", "HD95 mm"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, dice in result.dice.items():
        table.add_row(name, number(dice), number(result.hd95.get(name), 1))
    console.print(table)
    console.print(
        f"{len(result.per_case)} cases of {result.test_patients} patients, {result.support_slices} support slices of "
        f"{result.support_patients} patients, {result.slices_per_second:.1f} slices/s; written to {out}",
        highlight=False,
    )


def show_conversion(console: Console, result: Conversion) -> None:
    """Print the end of ``rfss data convert``."""
    layout, folder = result.layout, escape(str(result.folder))
    classes = ", ".join(f"{value} {name}" for value, name in layout.classes.items())
    problems = f"{len(result.left_out)} problem{'' if len(result.left_out) == 1 else 's'}"
    console.print(
        f"{layout.name}: {result.labelled} labelled and {result.unlabelled} unlabelled images of {result.patients} "
        f"patients are in {folder} ({result.resumed} were there before, {result.linked} files linked, {problems})\n"
        f"classes: {classes}\ncite: {layout.citation}; terms: {layout.terms}",
        highlight=False,
        soft_wrap=True,
    )
    if layout.caution:
        console.print(f"[yellow]note:[/] {layout.caution}", highlight=False, soft_wrap=True)
    places = f"{folder}/images --labels {folder}/labels --config {folder}/settings.yaml"
    console.print(f"next: rfss evaluate --images {places} --out result.json", highlight=False, soft_wrap=True)
    if result.unlabelled:
        console.print(f"  or: rfss label {places} --workspace work", highlight=False, soft_wrap=True)


CASES_SHOWN = 15


def show_selection(console: Console, selection: Selection, out: Path) -> None:
    """Print the end of ``rfss select``."""
    table = Table(title=f"Label these {selection.n} slices next", title_justify="left")
    for heading in ("rank", "case", "patient", "slices", "stands for"):
        table.add_column(heading, justify="left" if heading in ("case", "patient", "slices") else "right")
    for case in selection.cases_to_label[:CASES_SHOWN]:
        numbers = [str(number) for number in sorted(case.slices)]
        listed = ", ".join(numbers[:12] + ["..."] * (len(numbers) > 12))
        table.add_row(str(case.rank), escape(case.case), escape(case.patient), listed, str(case.covers))
    console.print(table)
    if len(selection.cases_to_label) > CASES_SHOWN:
        console.print(f"... and {len(selection.cases_to_label) - CASES_SHOWN} more cases", highlight=False)
    coverage = Table(title="Distance of unlabelled slices to the nearest labelled or chosen one", title_justify="left")
    for heading in ("", "mean", "95th percentile", "largest"):
        coverage.add_column(heading, justify="right" if heading else "left")
    rows = {f"chosen by {selection.objective}": selection.coverage[-1], "random": selection.random_coverage[-1]}
    if selection.coverage[0].chosen == 0:
        rows = {"before": selection.coverage[0], **rows}
    for name, point in rows.items():
        coverage.add_row(name, number(point.mean), number(point.p95), number(point.maximum))
    console.print(coverage)
    console.print(
        f"{selection.n} of {selection.slices - selection.labelled_slices} unlabelled slices of "
        f"{selection.patients} patients, {selection.labelled_slices} labelled before, "
        f"{selection.quarantined} inputs set aside",
        highlight=False,
    )
    if selection.duplicates is not None:
        console.print(
            f"near-duplicates: {selection.duplicates.groups} groups, {selection.duplicates.slices} slices, "
            f"{selection.duplicates.across_patients} groups across patients",
            highlight=False,
        )
    for warning in selection.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False)
    console.print(f"written to {escape(str(out))}", highlight=False)


def show_status(console: Console, status: Status) -> None:
    """Print ``rfss status``."""
    table = Table(title=f"{status.workspace}: {status.state}", title_justify="left")
    for heading in ("stage", "done", "of", "failed", "unit", "rate", "left"):
        table.add_column(heading, justify="left" if heading in ("stage", "unit") else "right")
    for stage in status.stages:
        rate = "" if stage.rate is None else f"{stage.rate:.3g}/s"
        going = status.state == "running" and not stage.finished
        left = _duration(stage.left_s) if going and stage.left_s is not None else ""
        counts = (str(stage.done), str(stage.total), str(stage.failed) if stage.failed else "")
        table.add_row(stage.name, *counts, stage.unit, rate, left)
    console.print(table)
    if status.owner is not None:
        owner = status.owner
        console.print(f"{owner.command}\non {owner.host}, process {owner.pid}, since {owner.since}", highlight=False)
    if status.state in ("died", "failed", "stopped"):
        console.print("start the same command again to go on where it stopped", highlight=False)
    for failed in status.failures[:20]:
        console.print(
            f"[red]failed[/] {failed.stage} {failed.chunk} ({failed.reason}): {escape(failed.message)}", highlight=False
        )
    for name, reason, message in status.quarantined[:20]:
        console.print(f"[yellow]set aside[/] {escape(name)} ({reason}): {escape(message)}", highlight=False)
    if len(status.quarantined) > 20:
        console.print(f"... and {len(status.quarantined) - 20} more in manifest/quarantine.parquet", highlight=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def show_review_cases(console: Console, cases: Sequence[ReviewCase], out: Path, workspace: str) -> None:
    """Print the end of ``rfss review export``."""
    table = Table(title=f"Review these {len(cases)} pseudo-labels", title_justify="left")
    for heading in ("rank", "case", "decision", "predicted Dice", "expected gain"):
        table.add_column(heading, justify="left" if heading in ("case", "decision") else "right")
    for case in cases[:CASES_SHOWN]:
        figures = [number(case.predicted_dice), number(case.expected_gain, 4)]
        table.add_row(str(case.rank), escape(case.name), escape(case.decision), *figures)
    console.print(table)
    if len(cases) > CASES_SHOWN:
        console.print(f"... and {len(cases) - CASES_SHOWN} more cases", highlight=False)
    console.print(
        f"written to {escape(str(out))}: correct the label maps in labels/, mark them in worklist.csv, then\n"
        f"rfss review import {escape(str(out))} --workspace {escape(workspace)}",
        highlight=False,
        soft_wrap=True,
    )


def show_review_import(console: Console, result: ReviewImport) -> None:
    """Print the end of ``rfss review import``."""
    table = Table(title=f"{len(result.imported)} reviewed label maps", title_justify="left")
    for heading in ("case", "by", "changed", "Dice of the pseudo-label"):
        table.add_column(heading, justify="left")
    for review in result.imported:
        dice = ", ".join(f"{name} {value:.3f}" for name, value in review.dice.items())
        table.add_row(escape(review.name), escape(review.reviewer), "yes" if review.changed else "no", escape(dice))
    if result.imported:
        console.print(table)
    if result.untouched:
        console.print(
            f"{len(result.untouched)} left alone (unchanged and not marked as reviewed, or marked no): "
            f"{escape(', '.join(result.untouched[:5]))}{' ...' if len(result.untouched) > 5 else ''}",
            highlight=False,
        )
    if result.imported:
        console.print("they join the support set of the next `rfss label` on this workspace", highlight=False)


def show_export(console: Console, report: ExportReport) -> None:
    """Print the end of ``rfss export``."""
    manifest = report.manifest
    cases = manifest["cases"]
    sources = ("pseudo-label", "expert", "reviewed")
    counts = ", ".join(f"{count} {source}" for source in sources if (count := report.count(source)))
    test = sum(case["part"] == "test" for case in cases)
    console.print(
        f"data set {escape(manifest['dataset']['name'])} as {manifest['format']}: {len(cases)} cases ({counts}"
        f"{f'; {test} of them the test part' if test else ''})"
        f"{f', {report.resumed} of them written before' if report.resumed and not report.existed else ''}",
        highlight=False,
    )
    classes = ", ".join(f"{value} {escape(name)}" for value, name in manifest["classes"].items())
    renumbered: dict[str, int] = manifest["plan"].get("label_map", {})
    if any(int(value) != number for value, number in renumbered.items()):
        classes += f"; renumbered to {', '.join(f'{value} -> {number}' for value, number in renumbered.items())}"
    console.print(f"classes: {classes}", highlight=False)
    for entry in report.left_out[:CASES_SHOWN]:
        console.print(f"[yellow]left out[/] {escape(entry.message)} ({entry.reason})", highlight=False)
    if len(report.left_out) > CASES_SHOWN:
        console.print(f"... and {len(report.left_out) - CASES_SHOWN} more, see rfss-export.json", highlight=False)
    files = len(manifest["files"]) + sum(len(case["files"]) for case in cases)
    state = "is there already, unchanged:" if report.existed else "written to"
    console.print(f"{state} {escape(str(report.folder))} ({files} files)", highlight=False, soft_wrap=True)


def _mean(part: IntervalPart | None, decimals: int = 3) -> str:
    return number(None if part is None else part.mean, decimals)
