from __future__ import annotations

import re
from pathlib import Path

import pytest

from rfss_core.datasets.review import ReviewCase, WorklistRow, read_document, read_worklist, write_worklist
from rfss_core.datasets.viewers import class_palette, itk_snap_labels, slicer_colors
from rfss_core.errors import InputError, InputNotFoundError, ReviewError
from rfss_core.quality.picture import class_colours

CLASSES = {1: "left ventricle", 4: 'the "core"', 200: "心"}


def case(name: str) -> ReviewCase:
    return ReviewCase(
        rank=1, case_id=name, name=name, patient="p", image=f"images/{name}.png", label=f"labels/{name}.png",
        decision="review", reason="why, exactly", predicted_dice=None, lower_bound=0.25, expected_gain=1e-5,
        image_digest="", pseudo_label_sha256="", label_digest="",
    )  # fmt: skip


def write(folder: Path, text: str) -> Path:
    (folder / "worklist.csv").write_text(text, encoding="utf-8")
    return folder


def test_a_worklist_comes_back_as_it_was_filled_in(tmp_path: Path) -> None:
    text = write_worklist([case("a"), case("f/b"), case("c")])
    lines = text.splitlines()
    assert lines[0].endswith("reviewed,reviewer,note")
    first, last = (lines[row].removesuffix(",,,") for row in (1, 3))
    filled = [lines[0], f"{first},Yes, Dr. A ,fine", lines[2], f"{last},n,,"]
    expected = {
        "a": WorklistRow(case="a", reviewed="yes", reviewer="Dr. A", note="fine"),
        "f/b": WorklistRow(case="f/b", reviewed="", reviewer="", note=""),
        "c": WorklistRow(case="c", reviewed="no", reviewer="", note=""),
    }
    assert read_worklist(write(tmp_path, "\n".join(filled))) == expected
    # As spreadsheets save it: a byte-order mark, semicolons, an empty line at the end.
    saved = "\ufeffcase;reviewed;reviewer;note\r\na;YES;Dr. A;fine\r\nf/b;;;\r\nc;false;;\r\n;;;\r\n"
    assert read_worklist(write(tmp_path, saved)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,reviewed\na,perhaps\n", "line 2: reviewed is 'perhaps'"),
        ("case,reviewed\na,yes\na,no\n", "line 3: case 'a' is listed twice"),
        ("name,reviewed\na,yes\n", "no column case"),
    ],
)
def test_a_worklist_that_cannot_be_read_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ReviewError, match=message):
        read_worklist(write(tmp_path, text))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"worklist\.csv"):
        read_worklist(tmp_path)
    with pytest.raises(InputNotFoundError, match=r"review\.json"):
        read_document(tmp_path)
    (tmp_path / "review.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="damaged"):
        read_document(tmp_path)


def test_viewers_get_every_class_with_the_reports_colours() -> None:
    palette, colours = class_palette(CLASSES), class_colours(list(CLASSES))
    assert palette[0] == (0, 0, 0)
    assert {value: "#{:02X}{:02X}{:02X}".format(*rgb) for value, rgb in palette.items() if value} == colours
    line = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([0-9.]+)\s+([01])\s+([01])\s+"([^"]*)"$')
    snap = [line.match(row) for row in itk_snap_labels(CLASSES).splitlines() if not row.startswith("#")]
    assert all(snap)
    assert [(int(row[1]), row[8]) for row in snap if row] == [
        (0, "Clear Label"), (1, "left ventricle"), (4, "the 'core'"), (200, "心"),
    ]  # fmt: skip
    slicer = slicer_colors(CLASSES).splitlines()
    assert slicer[0].startswith("# Color table file")
    assert [len(row.split()) for row in slicer[2:]] == [6, 6, 6, 6]
    assert slicer[3] == "1 left_ventricle {} {} {} 255".format(*palette[1])
