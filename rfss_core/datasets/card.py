"""Data card: what a user of a data set should know, in Markdown, from the run that made it.

Its parts follow "Data Cards: Purposeful and Transparent Dataset Documentation" (Pushkarna, Zaldivar, Kjartansson,
FAccT 2022), shortened to what a run can tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

CARD = "card.md"
"""File beside the manifest; not part of the digest, because a student's result joins it later."""
STUDENT_HEADING = "## Does it help a student?"
UNKNOWN_STUDENT = "No model has been trained on this data set yet."
_SECTION = re.compile(re.escape(STUDENT_HEADING) + r"\n.*?(?=\n## |\Z)", re.DOTALL)
_PART = re.compile(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class CardRow:
    """One class, or the mean, on held-out patients."""

    value: str
    """Label value; empty for the mean."""
    name: str
    dice: str
    interval: str
    patients: int
    hd95: str
    floor: str
    """Dice of label fusion."""


@dataclass(frozen=True)
class DataCard:
    """What the card says."""

    name: str
    digest: str
    status: str
    cases: int
    slices: int
    decisions: Mapping[str, int]
    rows: Sequence[CardRow]
    held_out_cases: int
    support_cases: int
    support_slices: int
    support_digest: str
    quarantined: int
    accept_dice: str
    reject_dice: str
    confidence: str
    mae: str
    coverage: str
    preset: str
    k: int
    embedding: str
    segmentation: str
    fingerprint: str
    code: str
    metrics_library: str
    unit: str
    """Of HD95: mm, or pixels where the images tell no spacing."""
    notes: Sequence[str]

    @property
    def student(self) -> str:
        """The section that a student's result fills later."""
        return student_section(UNKNOWN_STUDENT)


def render_card(card: DataCard) -> str:
    """Return the card as Markdown."""
    # Markdown, not HTML: nothing is to be escaped, and names of classes are the user's own.
    environment = Environment(loader=PackageLoader("rfss_core.datasets"), undefined=StrictUndefined, autoescape=False)  # noqa: S701
    return environment.get_template(CARD).render(card=card).rstrip() + "\n"


def student_section(text: str) -> str:
    """Return the card's section on students with this text."""
    return f"{STUDENT_HEADING}\n\n{text.strip()}\n"


def student_text(card: str) -> str | None:
    """Return what a card says of students; None where it says nothing yet."""
    found = _SECTION.search(card)
    text = "" if found is None else found[0].removeprefix(STUDENT_HEADING).strip()
    return text if text and text != UNKNOWN_STUDENT else None


def with_student(card: str, text: str, title: str | None = None) -> str:
    """Return a card whose section on students holds this text; all else stays.

    Args:
        card: a card of :func:`render_card`.
        text: Markdown, for example a table of Dice with and without the pseudo-labels; no headings.
        title: what the text is about, such as a student's name: it replaces what was said under the same title, and
            what stands under others stays. Default: it replaces the whole section.
    """
    if title is not None:
        said = {name: rest.strip() for name, rest in _PART.findall(student_text(card) or "")}
        said[title] = text.strip()
        text = "\n\n".join(f"### {name}\n\n{rest}" for name, rest in sorted(said.items()))
    section = student_section(text)
    if _SECTION.search(card):
        return _SECTION.sub(lambda _: section, card, count=1)
    return f"{card.rstrip()}\n\n{section}"
