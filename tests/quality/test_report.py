from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_content import CLASSES, EVIL, content

from rfss_core.errors import InputError
from rfss_core.quality import (
    METRICS_LIBRARY,
    Gate,
    ModelFact,
    Picture,
    QualityPrediction,
    render_report,
    summarise,
    typical_cases,
    write_report,
)
from rfss_core.quality.picture import render_picture
from rfss_core.settings import QualitySettings

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the page shows and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.images: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            assert not key.startswith("on"), f"event handler {key}"
            if key in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
                self.references.append(value or "")
            if key == "src":
                self.images.append(value or "")
            if key == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return render_report(content())


@pytest.fixture(scope="module")
def page(files: dict[str, bytes]) -> Page:
    return Page(files["index.html"].decode())


def test_the_page_is_self_contained(page: Page, files: dict[str, bytes]) -> None:
    assert page.references
    for reference in page.references:
        assert reference.startswith(("data:image/webp;base64,", "#")), reference
    source = files["index.html"].decode()
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not re.search(r"@import|url\((?!#)", source)
    assert "default-src 'none'" in source
    for anchor in (reference for reference in page.references if reference.startswith("#") and reference != "#"):
        assert anchor[1:] in page.ids


def test_names_cannot_inject_markup(page: Page, files: dict[str, bytes]) -> None:
    source = files["index.html"].decode()
    assert EVIL not in source
    assert "<b>Myo</b>" not in source
    # Escaped, every one of them is still there to be read.
    for shown in ("case", "held out", "broken", "careful", "new", "support"):
        assert f"{shown} {EVIL}" in page.text
    assert "RV & <b>Myo</b>" in page.text
    assert "$LV_{心}$" in page.text


def test_the_page_says_what_a_reader_needs(page: Page) -> None:
    mean = content().summary.dice["mean"]
    for fact in (
        "hearts", "version 4", "Untrained weights", "embedded:sam2-tiny", METRICS_LIBRARY, "d" * 64, "f" * 64, "2" * 64,
        f"{mean.mean:.3f}", f"{mean.ci_low:.3f} to {mean.ci_high:.3f}", "12 held-out patients", "Quality gate passed",
        "best", "median", "worst", "truncated", "ends early; copy it again", "6.7 min", "2 h 01 min", "accept_dice",
        "Label fusion",
    ):  # fmt: skip
        assert fact in page.text, fact
    assert "svg" in page.tags


def test_pictures_lie_in_the_page_and_beside_it(page: Page, files: dict[str, bytes]) -> None:
    names = {name for name in files if name != "index.html"}
    assert {f"overlays/held-out-{rank}.png" for rank in ("best", "median", "worst")} < names
    assert "overlays/held-out-worst-support-2.png" in names
    assert "overlays/unlabelled-1.png" in names
    assert len(page.images) == len(names) == 15
    for name in names:
        Image.open(BytesIO(files[name])).verify()


def test_an_untrained_warning_only_where_due() -> None:
    trained = [ModelFact("segmentation", "sam2", "2" * 64, trained=True)]
    assert "Untrained" not in render_report(content(models=trained))["index.html"].decode()


def test_a_failed_gate_and_an_empty_run_are_shown() -> None:
    settings = QualitySettings(min_dice=0.99)
    whole = content()
    gate = Gate(settings).judge(whole.summary, whole.measurements)
    assert "Quality gate failed" in Page(render_report(content(gate=gate))["index.html"].decode()).text
    nothing = summarise([], CLASSES, settings, 0)
    bare = content(
        summary=nothing, gate=Gate(settings).judge(nothing), measurements=[], comparisons=[], unlabelled=[],
        prediction=QualityPrediction(note="too few patients"), decisions={}, quarantine=[], seconds={}, versions={},
        parameters={}, models=[], fusion=None, warnings=[], names={}, version=None, created="",
    )  # fmt: skip
    text = Page(render_report(bare)["index.html"].decode()).text
    assert "too few patients" in text
    assert "Every input could be used" in text
    assert "no class could be measured" in text


def test_long_queues_are_cut_and_say_so() -> None:
    many = {f"case{number:05}": 0.6 for number in range(700)}
    prediction = replace(content().prediction, predicted=dict(many), lower=dict(many))
    rare = content(prediction=prediction, decisions=dict.fromkeys(many, "review"), queue=[], comparisons=[])
    page = render_report(rare)["index.html"].decode()
    assert "The first 500 of 700 cases" in page
    assert "case00499" in page
    assert "case00500" not in page


def test_the_page_stays_small_for_thousands_of_cases() -> None:
    measurements = [
        replace(content().measurements[n % 12], case=f"case{n:05}", patient=f"p{n:05}") for n in range(5000)
    ]
    points = [replace(content().prediction.points[n % 12], case=f"case{n:05}") for n in range(5000)]
    queue = [replace(content().queue[n % 12], case=f"new{n:05}", picture=None) for n in range(5000)]
    prediction = replace(content().prediction, points=tuple(points))
    many = content(measurements=measurements, prediction=prediction, queue=queue, acceptance=content().acceptance * 400)
    assert len(render_report(many)["index.html"]) < 2 * 2**20


def test_tables_have_headers_and_pictures_say_what_they_show(files: dict[str, bytes]) -> None:
    source = files["index.html"].decode()
    rows = re.findall(r"<tr\b.*?</tr>", source, re.DOTALL)
    assert len(rows) > 50
    assert all("<th" in row for row in rows)
    assert all('scope="' in tag for tag in re.findall(r"<th\b[^>]*>", source))
    assert len(re.findall(r'<img src="[^"]+" alt="[^"]{10,}"', source)) == source.count("<img")
    assert all("aria-label=" in tag for tag in re.findall(r"<svg\b[^>]*>", source))
    assert source.count("<svg") == 4


def test_the_queue_says_what_to_review_and_why(page: Page) -> None:
    for words in ("Expected gain", "0.0100", "rfss review export work --out review", f"why {EVIL}", "the image alone"):
        assert words in page.text, words


def test_the_same_content_gives_the_same_bytes_and_replaces_old_pictures(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    stale = tmp_path / "report" / "overlays" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    path = write_report(content(), tmp_path / "report")
    assert path == tmp_path / "report" / "index.html"
    found = {p.relative_to(path.parent).as_posix(): p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    assert found == files


def test_contours_have_the_class_colours_where_the_mask_is() -> None:
    prediction = np.zeros((40, 40), np.uint8)
    prediction[10:30, 10:30] = 1
    black = np.zeros((40, 40), np.float32)
    data = render_picture(Picture(black, "", prediction), {1: "#ff0000"}, size=400)
    pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (400, 400)
    red = pixels[..., 0] > 200
    rows, columns = np.nonzero(red)
    # The contour runs half a pixel outside the mask's pixel centres: at 100 and 300 of 400.
    assert abs(rows.min() - 100) <= 2
    assert abs(rows.max() - 300) <= 2
    assert abs(columns.min() - 100) <= 2
    assert pixels[200, 200, 0] > 40
    assert pixels[50, 50].max() == 0


def test_pictures_keep_the_physical_aspect() -> None:
    tall = render_picture(Picture(np.zeros((10, 10)), "", spacing=(3.0, 1.0)), {}, size=300)
    assert Image.open(BytesIO(tall)).size == (100, 300)


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3, 3\)"):
        render_picture(Picture(np.zeros((4, 4)), "", np.zeros((3, 3), np.uint8)), {1: "#ff0000"})
    with pytest.raises(InputError, match="H, W"):
        render_picture(Picture(np.zeros((4, 4, 4)), ""), {})


def test_typical_cases_name_each_case_once() -> None:
    cases = list(content().measurements)
    ranks = typical_cases(cases)
    assert [rank for rank, _ in ranks] == ["best", "median", "worst"]
    dices = [m.dice for _, m in ranks]
    assert dices == sorted(dices, reverse=True)
    assert dices[0] == max(m.dice for m in cases)
    assert dices[-1] == min(m.dice for m in cases)
    assert [rank for rank, _ in typical_cases(cases[:2])] == ["best", "worst"]
    assert [rank for rank, _ in typical_cases(cases[:1])] == ["best"]
    assert typical_cases([]) == []
