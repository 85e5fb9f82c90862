"""What the commands of the data registry print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from rfss_core.figures import number
from tasks.lineage import Lineage
from tasks.promotion import Promotion
from tasks.registry import DatasetVersion
from tasks.student_notes import gain_of
from tasks.students import student_links

_LONG = ("model", "registered")
"""Facts of a lineage that ``--json`` alone tells: the tree's lines would not fit a terminal."""
UNTOLD = "no Prefect server was told (PREFECT_API_URL is not set, or it does not answer): no automation starts"


def listing(found: Mapping[str, Sequence[DatasetVersion]]) -> dict[str, Any]:
    """Return the versions of each data set as plain JSON, the newest first."""
    return {
        name: [
            {
                "version": item.version,
                "aliases": list(item.aliases),
                "status": item.status,
                "held_out_dice": item.held_out_dice,
                "student_gain": gain_of(item),
                "students": [
                    {"student": f"{student}/{number}", **said} for student, number, said in student_links(item)
                ],
                "cases": {
                    key.removeprefix("cases."): int(n) for key, n in item.tags.items() if key.startswith("cases.")
                },
                "digest": item.digest,
                "date": item.created.isoformat(),
                "address": item.address,
                "run_id": item.run_id,
            }
            for item in versions
        ]
        for name, versions in found.items()
    }


def show_versions(console: Console, found: Mapping[str, Sequence[DatasetVersion]], uri: str) -> None:
    """Print ``rfss datasets``."""
    if not found:
        console.print(f"no data set is registered at {uri}; run `rfss label` first", highlight=False, soft_wrap=True)
        return
    table = Table(title=f"Data sets at {uri}", title_justify="left")
    for heading in ("name", "version", "aliases", "status", "Dice", "gain", "accepted", "digest", "date"):
        side: Literal["left", "right"] = "right" if heading in ("version", "Dice", "gain", "accepted") else "left"
        table.add_column(heading, justify=side, no_wrap=heading not in ("name", "aliases"))
    for name, versions in found.items():
        for place, item in enumerate(versions):
            gain = gain_of(item)
            dice = number(item.held_out_dice)
            table.add_row(
                escape(name) if place == 0 else "",
                item.version,
                ", ".join(item.aliases),
                f"[green]{item.status}[/]" if item.status == "accepted" else f"[red]{item.status}[/]",
                dice,
                "" if gain is None else f"{gain:+.3f}",
                item.tags.get("cases.accept", ""),
                item.digest[:8],
                f"{item.created:%Y-%m-%d}",
            )
    console.print(table)
    console.print(
        "Dice: mean over classes on held-out patients; gain: what the pseudo-labels added to a student's Dice (rfss "
        "train); accepted: cases",
        highlight=False,
        soft_wrap=True,
    )


def show_promotion(console: Console, done: Promotion) -> None:
    """Print the end of ``rfss promote``, ``demote`` and ``rollback``."""
    if done.champion is None:
        line = f"{done.name} has no champion any more; it was version {done.previous}"
    elif not done.changed:
        line = f"{done.champion} is the champion already; nothing changed"
    else:
        before = "no champion before" if done.previous is None else f"version {done.previous} before"
        line = f"{done.champion} is the champion now ({before}, digest {done.champion.digest[:12]})"
    console.print(escape(line), highlight=False, soft_wrap=True)
    for note in done.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    if done.changed:
        console.print("Prefect was told" if done.told_prefect else UNTOLD, highlight=False, soft_wrap=True)


def show_lineage(console: Console, lineage: Lineage) -> None:
    """Print ``rfss lineage`` as a tree, what was made below what it was made from."""
    nodes = {node.id: node for node in lineage.nodes}
    shown: set[str] = set()

    def title(key: str) -> str:
        kind, _, name = key.partition(":")
        name = name[:12] if kind == "support" else name
        mark = " [bold]<-[/]" if key in lineage.asked else ""
        if key in shown:
            return f"{kind} [bold]{escape(name)}[/] (see above){mark}"
        facts = ", ".join(
            value if what == "what" else f"{what} {value}" for what, value in nodes[key].facts if what not in _LONG
        )
        return f"{kind} [bold]{escape(name)}[/]{mark}" + (f"  [dim]{escape(facts)}[/]" if facts else "")

    def grow(tree: Tree, key: str) -> None:
        branch = tree.add(title(key))
        if key not in shown:
            shown.add(key)
            for made in lineage.downstream(key):
                grow(branch, made)

    for root in lineage.roots():
        tree = Tree("", hide_root=True)
        grow(tree, root.id)
        console.print(tree, highlight=False, soft_wrap=True)
