"""The report as a browser shows it: nothing from the network, no complaint, every picture, no sideways scrolling."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser, open_browser
from report_content import content

from rfss_core.quality import write_report

WIDER = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('pre') &&
!e.closest('details') && !e.classList.contains('skip') && e.getBoundingClientRect().right > innerWidth + 1)
.map(e => e.tagName + '.' + e.getAttribute('class')).slice(0, 5)"""
CONTRAST = """(() => {
  const part = value => { const c = value / 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
  const light = rgb => .2126 * part(rgb[0]) + .7152 * part(rgb[1]) + .0722 * part(rgb[2]);
  const numbers = text => text.match(/[0-9.]+/g).map(Number);
  const behind = element => { for (let e = element; e; e = e.parentElement) {
    const c = numbers(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  return [...document.querySelectorAll('p, td, th, h1, h2, h3, li, a, span, figcaption, caption, summary, code, b')]
    .filter(e => e.checkVisibility() && e.innerText.trim() && !e.classList.contains('skip')).map(e => {
      const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + ': ' + e.innerText.slice(0, 40)]; })
    .filter(found => found[0] < 4.5).map(found => found.join(' ')).slice(0, 5);
})()"""


@pytest.mark.timeout(300)
def test_a_browser_shows_all_of_it(tmp_path: Path) -> None:
    page = write_report(content(), tmp_path)
    with open_browser() as browser:
        browser.resize(1280)
        browser.show(page)
        assert browser.requested[0] == page.as_uri()
        assert all(url.startswith("data:image/") for url in browser.requested[1:])
        _check(browser, images=15)
        for scheme in ("dark", "light"):
            browser.prefer(scheme)
            assert browser.evaluate(CONTRAST) == [], scheme
        browser.resize(390)
        _check(browser, images=15)
        assert browser.complaints == []


def _check(browser: Browser, images: int) -> None:
    decoded = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
    widths = browser.evaluate(decoded)
    assert len(widths) == images
    assert min(widths) >= 16
    assert browser.evaluate(WIDER) == []
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate("[...document.images].every(i => i.alt.trim())")
