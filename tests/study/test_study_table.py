"""Tables of a study from rows with known figures."""

from __future__ import annotations

import csv
import io
import statistics

import pytest

from rfss_core.study import CaseResult, Evaluation, RowResult, StudySettings
from rfss_core.study.plot import render_bars, render_curve
from rfss_core.study.settings import Claim
from rfss_core.study.table import csv_text, judge, lines_of, markdown

SCORES = {
    "near": {0: {"p": 0.8, "q": 0.6}, 1: {"p": 0.7, "r": 0.5}},
    "far": {0: {"p": 0.5, "q": 0.5}, 1: {"p": 0.6, "r": 0.2}},
}


def row(label: str, seed: int, scores: dict[str, float], k: int = 8, fresh: int = 10) -> RowResult:
    mean = statistics.fmean(scores.values())
    evaluation = Evaluation(
        dice={"a": mean, "b": None, "mean": mean},
        hd95={"a": 3.0, "b": None, "mean": 3.0},
        per_case=[
            CaseResult(
                case=f"{patient}_1", patient=patient, dice={"a": value, "b": 1.0}, hd95={"a": 3.0, "b": 0.0},
                dice_by_third={"large end": {"a": value}, "middle": {"a": value / 2}, "small end": {}},
            )
            for patient, value in scores.items()
        ],
        label_fusion_dice={}, slices_per_second=5.0, segmented_now=fresh, processor_seconds=4.0,
        seconds={"segment": 2.0}, preset="tiny", k=k, strategy="dino", segmenter="sam2-memory", points=None, seed=seed,
        support_slices=50, support_patients=3, test_patients=2, refused=0, models={}, metrics="m", code="c",
    )  # fmt: skip
    return RowResult(
        fingerprint=f"{label}{seed}", label=label, seed=seed, command="rfss evaluate", settings="",
        evaluation=evaluation,
        versions={}, device="cpu", finished="now",
    )  # fmt: skip


@pytest.fixture
def rows() -> list[RowResult]:
    return [row(label, seed, scores) for label, seeds in SCORES.items() for seed, scores in seeds.items()]


def study(**more: object) -> StudySettings:
    return StudySettings.model_validate({"name": "s", "methods": [{"name": "near"}, {"name": "far"}], **more})


def test_means_and_deviations_are_over_seeds_and_intervals_over_patients(rows: list[RowResult]) -> None:
    near, far = lines_of(study(thirds=True), rows)
    assert near.dice["mean"].mean == pytest.approx(0.65)
    assert near.dice["mean"].sd == pytest.approx(statistics.stdev([0.7, 0.6]))
    assert near.dice["b"].mean is None
    # Patient p was tested with both seeds and counts once.
    assert near.interval["mean"].n == 3
    assert near.interval["mean"].mean == pytest.approx(statistics.fmean([0.75, 0.6, 0.5]))
    assert near.seconds_a_slice.mean == pytest.approx(0.2)
    assert near.thirds["middle"]["a"] == pytest.approx(0.325)
    assert near.thirds["small end"]["mean"] is None
    assert far.label == "far"


def test_speed_of_reading_back_is_no_speed(rows: list[RowResult]) -> None:
    again = [row("near", 0, SCORES["near"][0], fresh=0)]
    assert lines_of(study(), again)[0].seconds_a_slice.mean is None


def test_claims_compare_the_same_patients_of_the_same_seed(rows: list[RowResult]) -> None:
    claim = Claim(text="nearer is better", above="near", below="far")
    verdict = judge(claim, rows)
    assert verdict.difference == pytest.approx(statistics.fmean([0.3, 0.1, 0.1, 0.3]))
    assert verdict.pairs == 4
    assert verdict.holds
    assert verdict.answer() == "yes"
    # 0.1 more than claimed, by less than two standard errors of 0.058.
    assert judge(claim.model_copy(update={"by": 0.1}), rows).answer() == "in the mean only"
    assert judge(claim.model_copy(update={"by": 0.2}), rows).answer() == "**no**"
    assert not judge(Claim(text="t", above="far", below="near"), rows).holds
    missing = judge(claim, [one for one in rows if one.label == "near"])
    assert (missing.difference, missing.holds) == (None, False)
    alone = [one for one in rows if not (one.label == "far" and one.seed == 1)]
    assert judge(claim, alone).pairs == 2


def test_markdown_keeps_others_figures_apart(rows: list[RowResult]) -> None:
    published = {"source": "Somebody, Table 9", "dice": {"theirs": {"a": 0.1234}}}
    claim = Claim(text="nearer | better", above="near", below="far")
    settings = study(thirds=True, published=published, title="T", about="A.")
    text = markdown(settings, lines_of(settings, rows), [judge(claim, rows)])
    ours, theirs = text.split("Not measured here: Somebody, Table 9")
    assert "0.1234" not in ours
    assert "0.1234" in theirs
    assert "| near | 2 | 0.650 ± 0.071 | n/a |" in ours
    assert "nearer \\| better" in ours
    widths = [
        line.count(" | ") for line in ours.splitlines() if line.startswith("| method | seeds") or "near |" in line
    ]
    assert widths


def test_csv_has_a_line_a_row_and_class(rows: list[RowResult]) -> None:
    table = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(table) == len(rows) * 3
    assert {line["class"] for line in table} == {"a", "b", "mean"}
    assert table[0]["dice"] == "0.7"
    assert table[0]["command"] == "rfss evaluate"


def test_plots_are_files_that_say_the_same_each_time() -> None:
    lines = lines_of(
        study(), [row(f"RFSS, k = {k}", seed, {"p": 0.1 * k, "q": 0.1}, k=k) for k in (2, 4) for seed in (0, 1)]
    )
    for render in (render_curve, render_bars):
        assert render(lines, "T", "png").startswith(b"\x89PNG")
        assert b"<svg" in render(lines, "T", "svg")
        assert render(lines, "T", "svg") == render(lines, "T", "svg")
