"""The data card."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rfss_core.datasets.card import (
    STUDENT_HEADING,
    UNKNOWN_STUDENT,
    CardRow,
    DataCard,
    render_card,
    student_text,
    with_student,
)

CARD = DataCard(
    name="hearts",
    digest="d" * 64,
    status="accepted",
    cases=40,
    slices=400,
    decisions={"accept": 30, "review": 8, "reject": 2},
    rows=[
        CardRow("1", "a | b".replace("|", "\\|"), "0.812", "0.700 to 0.900", 9, "3.1", "0.700"),
        CardRow("", "mean", "0.812", "n/a", 9, "n/a", "0.700"),
    ],
    held_out_cases=12,
    support_cases=20,
    support_slices=180,
    support_digest="e" * 64,
    quarantined=1,
    accept_dice="0.8",
    reject_dice="0.5",
    confidence="90",
    mae="0.041",
    coverage="92 %",
    preset="tiny",
    k=8,
    embedding="v",
    segmentation="s",
    fingerprint="f" * 64,
    code="0.1.0+abc",
    metrics_library="MONAI 1.6.1",
    unit="mm",
    notes=["One & only <note>"],
)


def test_a_card_is_markdown_with_what_the_run_knows() -> None:
    text = render_card(CARD)
    for wanted in (
        "# hearts",
        "| 1 | a \\| b | 0.812 | 0.700 to 0.900 | 9 | 3.1 | 0.700 |",
        "| accept | 30 |",
        "One & only <note>",
        'load("hearts@champion")',
        f"{STUDENT_HEADING}\n\n{UNKNOWN_STUDENT}",
    ):
        assert wanted in text
    rows = [line for line in text.splitlines() if line.startswith("|") and "class" in line]
    assert rows
    table = text[text.index(rows[0]) :].split("\n\n")[0].splitlines()
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert len(table) == 4
    assert "Nothing that the run noticed" in render_card(replace(CARD, notes=[]))


@pytest.mark.parametrize("after", ["", "\n## Appendix\n\nMore.\n"])
def test_a_students_result_takes_its_place_and_no_more(after: str) -> None:
    card = render_card(CARD) + after
    assert student_text(card) is None
    once = with_student(card, "It helps: 0.7 to 0.8 (\\1).")
    assert student_text(once) == "It helps: 0.7 to 0.8 (\\1)."
    twice = with_student(once, "It helps: 0.7 to 0.9.")
    assert student_text(twice) == "It helps: 0.7 to 0.9."
    assert twice.count(STUDENT_HEADING) == 1
    assert with_student(twice, UNKNOWN_STUDENT).split() == card.split()
    assert student_text(with_student("# old card", "new")) == "new"


def test_each_student_has_its_own_place() -> None:
    card = render_card(CARD) + "\n## Appendix\n\nMore.\n"
    texts = {"Student b/1": "| a |\n|---|\n\nIt helps.", "Student a/2": "It does not.", "Benchmark": "0.7"}
    for _ in range(2):
        for title, text in texts.items():
            card = with_student(card, text, title)
    assert student_text(card) == "\n\n".join(f"### {title}\n\n{text}" for title, text in sorted(texts.items()))
    assert card.rstrip().endswith("More.")
    changed = with_student(card, "It does now.", "Student a/2")
    assert changed == card.replace("It does not.", "It does now.")
