"""The search page in headless Chromium: typing, hits, filters, nothing, errors, keyboard, the key.

Needs playwright and a Chromium (CHROMIUM names its file, else the usual places); skipped without them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedforge.encode import encode
from embedforge.search import Document, build_index
from embedforge.serve.app import create_app
from embedforge.serve.service import Service
from serve_for_tests import served

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)

OFFLINE = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
TEXTS = {
    "river": ("how deep is the <b>river</b>? 🙂 nobody knows the river", "en"),
    "bread": ("bread and music, and a recipe " * 40, "en"),
    "fluss": ("wie tief ist der Fluss", "de"),
    "copy": ("Wie tief ist der Fluss", "de"),
}


@pytest.fixture(scope="module")
def index(saved_latent: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Service, str]:
    service = Service.load(saved_latent, name="tiny", device="cpu")
    documents = [
        Document(id, text, f"{id}.txt", {"lang": lang, "file_hash": "f00d"})
        for id, (text, lang) in TEXTS.items()
    ]
    folder = tmp_path_factory.mktemp("page") / "index"
    vectors = encode(service.model, [document.text for document in documents])
    build_index(folder, vectors, documents, model=str(saved_latent), contract=service.contract)
    return service, str(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.set_default_timeout(10_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    page.close()
    assert problems == []


def test_a_visit(page: Any, index: tuple[Service, str]) -> None:
    service, folder = index
    with served(create_app(service, index=folder)) as (url, server):
        page.goto(url)
        expect(page.locator("#title")).to_contain_text("4 documents")
        page.keyboard.type("the river")  # the query has the focus
        page.wait_for_selector("#hits li")
        first = page.locator("#hits li").first
        assert "river.txt" in first.inner_text()
        assert first.locator("mark").all_inner_texts().count("river") == 2
        assert "<b>" in first.locator(".text").inner_text()  # shown, not obeyed
        assert {"meaning", "words", "fused"} <= set(first.locator(".scores").inner_text().split())
        page.keyboard.press("ArrowDown")
        assert "river.txt" in page.evaluate("document.activeElement.innerText")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "query"
        page.get_by_label("Only lang=de").click()
        expect(page.locator("#hits li")).to_have_count(1)
        assert "fluss.txt" in page.locator("#hits").inner_text()
        assert "the same text in" in page.locator("#hits").inner_text()
        assert "copy.txt" in page.locator("#hits").inner_text()
        assert "f00d" not in page.locator("#hits").inner_text()
        page.get_by_label("Remove the filter lang=de").click()
        expect(page.locator("#hits li")).to_have_count(3)
        page.select_option("#mode", "lexical")
        page.fill("#query", "zebra")
        expect(page.locator("#status")).to_have_text("Nothing found: no document holds a word of the query.")
        page.fill("#filter", "nope=1")
        page.press("#filter", "Enter")
        page.wait_for_selector("#status.bad")
        assert "nope" in page.inner_text("#status")
        page.reload()  # the address holds the search
        page.wait_for_selector("#status.bad")
        assert page.input_value("#query") == "zebra"
        server.should_exit = True
    page.fill("#query", "gone")
    expect(page.locator("#status")).to_contain_text("does not answer")


def test_the_whole_of_a_long_text(page: Any, index: tuple[Service, str]) -> None:
    service, folder = index
    with served(create_app(service, index=folder)) as (url, _):
        page.goto(f"{url}/?q=bread&mode=lexical")
        page.wait_for_selector("#hits .more")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert page.inner_text("#hits .text").strip() == TEXTS["bread"][0].strip()
        page.keyboard.press("Enter")
        assert page.inner_text("#hits .text") != TEXTS["bread"][0]


def test_the_page_asks_for_the_key(page: Any, index: tuple[Service, str]) -> None:
    service, folder = index
    with served(create_app(service, index=folder, api_key="k")) as (url, _):
        page.goto(url)
        page.wait_for_selector("#door", state="visible")
        page.fill("#key", "k")
        page.press("#key", "Enter")
        page.wait_for_selector("#door", state="hidden")
        page.fill("#query", "river")
        page.wait_for_selector("#hits li")


def test_without_an_index_it_says_how_to_get_one(page: Any, index: tuple[Service, str]) -> None:
    with served(create_app(index[0])) as (url, _):
        page.goto(url)
        page.wait_for_selector("#status.bad")
        assert "--index" in page.inner_text("#status")
