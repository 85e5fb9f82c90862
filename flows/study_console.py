"""What ``rfss study`` prints: the plan, the tables, the claims."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from flows.study import StudyOutcome
    from rfss_core.study import Plan
    from tasks.estimate import Estimate


def show_plan(console: Console, plan: Plan, found: Estimate) -> None:
    """Print what a study would do: ``rfss study --check``."""
    study = plan.study
    table = Table(title=f"{study.name}: {len(plan.rows)} rows of {len(study.seeds)} seeds", title_justify="left")
    for heading in ("method", "k", "support slices", "test slices", "minutes"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for label in plan.labels:
        own = [place for place, row in enumerate(plan.rows) if row.label == label]
        sizes = [found.sizes[place] for place in own]
        table.add_row(
            escape(label),
            str(plan.rows[own[0]].settings.k) if plan.rows[own[0]].retrieves else "",
            _span([size.support_slices for size in sizes]),
            _span([size.test_slices for size in sizes]),
            f"{sum(found.seconds[place] for place in own) / 60:.1f}" if any(found.seconds[p] for p in own) else "done",
        )
    console.print(table)
    for note, count in Counter(found.notes).items():
        console.print(f"[yellow]note:[/] {escape(note)}{f' ({count} times)' if count > 1 else ''}", highlight=False)
    console.print(
        f"{found.finished} rows are finished; about {found.total / 60:.0f} minutes on this machine "
        f"({found.how}); nothing was segmented",
        highlight=False,
    )


def show_study(console: Console, outcome: StudyOutcome) -> None:
    """Print the end of ``rfss study``."""
    console.print(escape(outcome.table), highlight=False, soft_wrap=True)
    held = sum(outcome.claims.values())
    claims = f", {held} of {len(outcome.claims)} claims hold" if outcome.claims else ""
    console.print(
        f"{outcome.rows} rows ({outcome.read_back} from before){claims}; written to {escape(outcome.folder)}",
        highlight=False,
        soft_wrap=True,
    )


def _span(values: list[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"
