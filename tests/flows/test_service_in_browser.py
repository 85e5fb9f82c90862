"""Prefect's UI in a real browser: the form is filled in, the run is started and completes, the pictures are seen."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, open_browser
from cohorts import write_cohort
from service import ServiceUnderTest, serving, until

FIELD = """(() => { const title = [...document.querySelectorAll('.schema-form-property__label')].find(
  e => e.innerText.split('(')[0].trim() === %s);
  return title && title.closest('.schema-form-property').querySelector('textarea, input'); })()"""
FOCUS = """(() => { const field = %s; if (!field) return false;
  field.scrollIntoView({block: 'center'}); field.focus(); field.select(); return true; })()"""
SUBMIT = """(() => { const button = [...document.querySelectorAll('button')].find(e => e.innerText.trim() === 'Submit');
  if (!button) return false; button.click(); return true; })()"""


def fill(browser: Browser, title: str, value: str) -> None:
    """Type into a field of the form, as a person does."""
    until(lambda: browser.evaluate(FOCUS % (FIELD % json.dumps(title))), f"field {title} is there", 60)
    browser.call("Input.insertText", text=value)
    # The form takes a value up a moment after the last key.
    time.sleep(1.5)


def visit(browser: Browser, address: str, text: str) -> None:
    browser.call("Page.navigate", url=address)
    seen = f"document.body && document.body.innerText.includes({json.dumps(text)})"
    try:
        until(lambda: browser.evaluate(seen), f"'{text}' is shown at {address}", 120)
    finally:
        keep(browser, "last-page")


def keep(browser: Browser, name: str) -> None:
    """Write a screenshot into RFSS_SCREENSHOTS, for people to look at."""
    if folder := os.environ.get("RFSS_SCREENSHOTS"):
        data = browser.call("Page.captureScreenshot", format="png")["data"]
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(data))


def runs(service: ServiceUnderTest) -> list[dict[str, Any]]:
    return service.runs_of("label-dataset/label-dataset", "SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_is_started_and_looked_at_in_the_ui(tmp_path: Path) -> None:
    with open_browser() as browser, serving(tmp_path / "home", "--no-automations") as service:
        cohort = write_cohort(tmp_path / "cohort", patients=16, labelled=12)
        for domain in ("Page", "Network", "Runtime", "Log"):
            browser.call(f"{domain}.enable")
        browser.resize(1300)
        deployment = service.deployment("label-dataset/label-dataset")["id"]
        visit(browser, f"{service.ui}/deployments/deployment/{deployment}", "label-dataset")
        keep(browser, "deployment")
        visit(browser, f"{service.ui}/deployments/deployment/{deployment}/run", "Folder or glob of images")
        text = browser.evaluate("document.body.innerText")
        for shown in ("Support slices retrieved per query.", "Allowed: at least 1, at most 256.", "BIDS sub-ID"):
            assert shown in text
        fill(browser, "Images", str(cohort / "images"))
        fill(browser, "Labels", str(cohort / "labels"))
        fill(browser, "Workspace", str(tmp_path / "w"))
        fill(browser, "Held out", "7")
        keep(browser, "form-bad")
        browser.evaluate(SUBMIT)
        until(lambda: "maximum" in browser.evaluate("document.body.innerText"), "the form refuses 7", 60)
        keep(browser, "form-refused")
        assert not runs(service)
        fill(browser, "Held out", "0.5")
        fill(browser, "Min dice", "0")
        keep(browser, "form")
        until(lambda: browser.evaluate(SUBMIT), "the form has its button", 60)
        until(lambda: runs(service), "the run is created", 60)
        run = service.ended(runs(service)[0]["id"])
        assert run["state_name"] == "Completed", run["state"]
        visit(browser, f"{service.ui}/runs/flow-run/{run['id']}", "segment: finished in")
        keep(browser, "run")
        artifacts = service.artifacts(run["id"])
        visit(browser, f"{service.ui}/artifacts/artifact/{artifacts['rfss-overlays']['id']}", "Median held-out case")
        widths = (
            "Promise.all([...document.images].filter(i => i.src.startsWith('data:image/webp')).map("
            "i => i.decode().then(() => i.naturalWidth)))"
        )
        shown = browser.evaluate(widths)
        assert len(shown) == 3
        assert min(shown) > 100
        keep(browser, "overlays")
        visit(browser, f"{service.ui}/artifacts/artifact/{artifacts['rfss-held-out']['id']}", "HD95 mm")
        keep(browser, "held-out")
        visit(browser, f"{service.ui}/artifacts/artifact/{artifacts['rfss-summary']['id']}", "Report")
        keep(browser, "summary")
