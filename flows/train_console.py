"""What ``rfss train`` prints at its end."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rfss_core.figures import interval, number
from tasks.student_result import StudentResult, gain_text


def show_student(console: Console, result: StudentResult) -> None:
    """Print the figures of a student and where it is."""
    if result.test_dice:
        table = Table(title=f"{result.network} on {escape(result.dataset)}: test patients", title_justify="left")
        for heading in ("class", "Dice", "95 % interval", "HD95 mm", "patients"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for name, dice in result.test_dice.items():
            table.add_row(
                escape(name),
                number(dice.mean),
                interval(dice.ci_low, dice.ci_high),
                number(result.test_hd95[name].mean, 1),
                str(dice.n),
            )
        console.print(table)
    else:
        console.print("[yellow]note:[/] no expert's patient was left for a test; raise --test-share or label more")
    if (compared := result.comparison) is not None:
        mean = compared.alone.tested.dice["mean"].mean
        said = "n/a" if mean is None else f"{mean:.3f}"
        line = f"experts' labels alone: Dice {said}; gain of the pseudo-labels {gain_text(compared.gain)}: "
        console.print(escape(line + compared.verdict), highlight=False, soft_wrap=True)
    counts = result.counts
    best = "" if result.best_validation_dice is None else f", best validation Dice {result.best_validation_dice:.3f}"
    parts = f"{counts['expert_cases']} expert and {counts['pseudo_cases']} pseudo-labelled cases"
    validating = f"{counts['slices']} slices; {counts['validation_patients']} patients validate"
    before = " (trained before)" if result.trained_before else ""
    lines = [
        f"trained on {parts} ({validating}): {result.steps} steps on {result.device}{best}",
        f"student {result.student}, data set {result.dataset}, MLflow run {result.mlflow_run_id}{before}",
        f"model: {result.folder}/model.safetensors",
    ]
    console.print("\n".join(escape(line) for line in lines), highlight=False, soft_wrap=True)
