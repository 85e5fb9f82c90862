"""The data card of a run's data set."""

from __future__ import annotations

from rfss_core.code import code_version
from rfss_core.datasets.card import CardRow, DataCard, render_card
from rfss_core.figures import interval, number
from rfss_core.quality import METRICS_LIBRARY
from rfss_core.settings import LabelSettings
from tasks.summary import IntervalPart, Summary

MEAN = "mean"


def card_of(
    summary: Summary,
    settings: LabelSettings,
    classes: dict[int, str],
    slices: int,
    support: tuple[int, str],
    rasters: bool,
) -> str:
    """Return the card in Markdown.

    Args:
        summary: what the run did.
        settings: of the run.
        classes: label value to name.
        slices: slices with pseudo-labels.
        support: slices of the support set, and its digest.
        rasters: whether there are images without a spacing.
    """
    prediction = summary.quality_prediction
    models = {role: f"{model.name} (`{model.digest[:12]}`)" for role, model in summary.models.items()}
    card = DataCard(
        name=summary.dataset.name,
        digest=summary.dataset.digest,
        status=summary.dataset.status,
        cases=sum(summary.decisions.model_dump().values()),
        slices=slices,
        decisions=summary.decisions.model_dump(),
        rows=[
            *(
                _row(summary, name, str(value))
                for value, name in sorted(classes.items())
                if name in summary.held_out_dice
            ),
            _row(summary, MEAN, ""),
        ],
        held_out_cases=summary.cases.held_out,
        support_cases=summary.cases.support,
        support_slices=support[0],
        support_digest=support[1],
        quarantined=summary.cases.quarantined,
        accept_dice=f"{settings.quality.accept_dice:g}",
        reject_dice=f"{settings.quality.reject_dice:g}",
        confidence=f"{100 * settings.quality.confidence:g}",
        mae=number(prediction.mae),
        coverage="an unknown share" if prediction.coverage is None else f"{100 * prediction.coverage:.0f} %",
        preset=summary.preset,
        k=summary.k,
        embedding=models["embedding"],
        segmentation=models["segmentation"],
        fingerprint=summary.fingerprint,
        code=code_version(),
        metrics_library=METRICS_LIBRARY,
        unit="pixels" if rasters else "mm",
        notes=[*summary.gate, *summary.warnings],
    )
    return render_card(card)


def _row(summary: Summary, name: str, value: str) -> CardRow:
    dice = summary.held_out_dice[name]
    return CardRow(
        value=value,
        name=name.replace("|", "\\|"),
        dice=number(dice.mean),
        interval=interval(dice.ci_low, dice.ci_high),
        patients=dice.n,
        hd95=_mean(summary.held_out_hd95.get(name), 1),
        floor=_mean(summary.label_fusion_dice.get(name), 3),
    )


def _mean(part: IntervalPart | None, digits: int) -> str:
    return number(None if part is None else part.mean, digits)
