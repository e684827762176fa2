"""What the tests of the report share: a browser, and pages of runs."""

from __future__ import annotations

import pytest

from pipeline.report import write_report
from tests.report.chromium import Chromium


@pytest.fixture(scope="module")
def browser():
    """One real browser for the tests of a module."""
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def shown(browser):
    """Write the report on an output and open it; the page is as quiet as it has to be."""

    def show(output, **look):
        """A page given itself is only opened."""
        page = output if output.suffix == ".html" else write_report(output)
        browser.open(page, **look)
        assert browser.requests == [page.resolve().as_uri()]
        assert browser.complaints == []
        return browser

    return show


@pytest.fixture
def words(browser):
    """All text of the page that is open."""
    return lambda: browser.eval("document.body.innerText")


@pytest.fixture
def tiles(browser):
    """The numbers at the head of the page that is open, by their names."""
    return lambda: browser.eval(
        "Object.fromEntries(Array.from(document.querySelectorAll('.tiles div'),"
        "(tile) => [tile.querySelector('dt').textContent, tile.querySelector('dd').textContent]))"
    )
