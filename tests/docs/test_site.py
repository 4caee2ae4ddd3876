"""The documentation site: built strictly, then searched, filtered and followed in a browser."""

from __future__ import annotations

import functools
import http.server
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from browsing import Browser, open_browser
from documents import ROOT
from modwright.papers import papers

pytestmark = pytest.mark.slow

PHONE = 400
# What a page fetches by itself; links are only followed by readers.
FETCHED = re.compile(
    r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"|<link[^>]*\shref="([^"]+)"'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once; a warning is an error."""
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The site behind a local server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(autouse=True)
def _desktop(browser: Browser) -> Iterator[None]:
    """Every test starts at a desk, and no script may fail in it."""
    browser.resize(1280)
    browser.errors.clear()
    yield
    assert not browser.errors


def names(site: Path) -> list[str]:
    return sorted(file.relative_to(site).as_posix() for file in site.rglob("*.html"))


def shown(browser: Browser) -> set[str]:
    """Slugs of the cards that can be seen."""
    found: list[str] = browser.evaluate(
        "[...document.querySelectorAll('.paper-card')].filter(c => c.offsetHeight > 0)"
        ".map(c => c.querySelector('h3').id)"
    )
    return set(found)


def choose(browser: Browser, **values: str) -> None:
    """Sets fields of the catalogue's form as a reader does."""
    for name, value in values.items():
        field = f"document.querySelector('form.catalogue-filter').elements[{name!r}]"
        browser.evaluate(f"{field}.value = {value!r}")
        browser.evaluate(f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}))")


# Search, with a server and without one


@pytest.mark.parametrize("how", ["from files", "from a server"])
def test_a_search_leads_to_a_page(site: Path, served: str, browser: Browser, how: str) -> None:
    base = site.as_uri() if how == "from files" else served
    browser.open(f"{base}/index.html")
    browser.click("input.md-search__input")
    browser.type("nystrom modegpt")
    first = ".md-search-result__item a"
    browser.wait(f"document.querySelector({first!r}) !== null")
    assert "MoDeGPT" in browser.evaluate(f"document.querySelector({first!r}).textContent")
    browser.click(first)
    browser.arrive("papers/modegpt.html")
    assert "MoDeGPT" in browser.evaluate("document.querySelector('h1').textContent")


# The catalogue


@pytest.fixture
def catalogue(served: str, browser: Browser) -> Browser:
    browser.open(f"{served}/papers/index.html")
    assert shown(browser) == {one.slug for one in papers()}
    return browser


def test_cards_are_filtered_by_status(catalogue: Browser) -> None:
    for status in {one.status for one in papers()}:
        choose(catalogue, status=status)
        assert shown(catalogue) == {one.slug for one in papers() if one.status == status}
    count = catalogue.evaluate("document.querySelector('.catalogue-filter output').value")
    assert count == f"{len(shown(catalogue))} of {len(papers())} papers"


def test_cards_are_filtered_by_category_and_text(catalogue: Browser) -> None:
    choose(catalogue, category="surgery")
    surgery = {one.slug for one in papers() if "surgery" in one.category}
    assert shown(catalogue) == surgery
    catalogue.click(".catalogue-filter input")
    catalogue.type("Mamba LINEAR")
    left = shown(catalogue)
    assert left and left < surgery and "attention-to-mamba" in left
    catalogue.type(" nothing-has-this")
    assert shown(catalogue) == set()
    catalogue.click(".catalogue-filter button")
    catalogue.wait(
        f"document.querySelector('.catalogue-filter output').value[0] === '{len(papers())}'[0]"
    )
    assert shown(catalogue) == {one.slug for one in papers()}


def test_a_link_may_ask_for_a_choice(served: str, browser: Browser) -> None:
    browser.open(f"{served}/papers/index.html?status=works&category=nonsense")
    assert shown(browser) == {one.slug for one in papers() if one.status == "works"}


def test_every_card_shows_status_category_and_figure(catalogue: Browser) -> None:
    for one in papers():
        text = catalogue.evaluate(
            f"document.getElementById({one.slug!r}).closest('.paper-card').innerText"
        )
        assert one.status in text and one.title in text
        assert all(word in text for word in one.category)
        told = (one.figure or "No figure").split()[:3]
        assert " ".join(told) in text


@pytest.mark.parametrize("slug", ["llm-drop", "craft"])
def test_a_card_leads_to_its_page(catalogue: Browser, slug: str) -> None:
    one = next(one for one in papers() if one.slug == slug)
    catalogue.click(f"#{slug} a")
    catalogue.arrive(f"papers/{slug}.html")
    text = catalogue.evaluate("document.querySelector('article').innerText")
    links = catalogue.evaluate("[...document.querySelectorAll('article a')].map(a => a.href)")
    assert one.status in text and one.url in links
    if one.status == "planned":
        assert one.title in text
        assert "figure" not in text.lower() and "%" not in text, "a plan makes no claims"


def test_every_paper_has_a_page_and_the_navigation_those_that_work(site: Path) -> None:
    for one in papers():
        assert (site / "papers" / f"{one.slug}.html").is_file()
    page = (site / "papers" / "index.html").read_text(encoding="utf-8")
    entries = re.findall(r'<a [^>]*class="md-nav__link[^>]*>', page)
    linked = {
        found[1] for entry in entries if (found := re.search(r'href="([\w-]+)\.html"', entry))
    }
    assert {one.slug for one in papers() if one.page} <= linked


# What is made from the registries


def test_tables_hold_all_families_methods_and_presets(site: Path) -> None:
    from modwright.anatomy.families import families
    from modwright.surgery import method_names, method_type

    support = (site / "reference" / "support.html").read_text(encoding="utf-8")
    methods = (site / "reference" / "methods.html").read_text(encoding="utf-8")
    known = (site / "reference" / "families.html").read_text(encoding="utf-8")
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in method_names():
        assert f"<code>{name}</code>" in support
        assert f'<h2 id="{name}">' in methods
        assert f"modwright edit {name}" in commands
        assert all(
            f"<code>{option}</code>" in methods for option in method_type(name).__annotations__
        )
    for family in dict.fromkeys(families().values()):
        if family.__module__.startswith("modwright."):
            assert f"<code>{family.name}</code>" in known
            assert all(f"<code>{preset}</code>" in support for preset in family.presets)


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import importlib
    import pkgutil

    import modwright

    raw = (site / "objects.inv").read_bytes()
    listed = zlib.decompress(raw.split(b"\n", 4)[4]).decode()
    anchors = {line.split(" ", 1)[0] for line in listed.splitlines()}
    packages = [
        m.name for m in pkgutil.iter_modules(modwright.__path__) if not m.name.startswith("_")
    ]
    for room in sorted(set(packages) - {"cli"}):
        module = importlib.import_module(f"modwright.{room}")
        missing = [
            n for n in getattr(module, "__all__", []) if f"{module.__name__}.{n}" not in anchors
        ]
        assert not missing, f"{module.__name__}: {missing}"


# Everywhere


def test_no_page_scrolls_sideways_on_a_phone(site: Path, served: str, browser: Browser) -> None:
    browser.resize(PHONE, 800)
    for name in names(site):
        browser.open(f"{served}/{name}")
        assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE, name


def test_nothing_is_fetched_from_elsewhere(site: Path, served: str, browser: Browser) -> None:
    for name in names(site):
        page = (site / name).read_text(encoding="utf-8")
        for match in FETCHED.finditer(page):
            address = match[1] or match[2]
            assert not re.match(r"(https?:)?//", address), f"{name} fetches {address}"
    browser.asked.clear()
    for name in ("index.html", "tutorial.html", "papers/index.html", "reference/api/nn.html"):
        browser.open(f"{served}/{name}")
    own = (f"{served}/", "data:", "blob:")
    assert browser.asked and not [url for url in browser.asked if not url.startswith(own)]


def test_images_are_there(served: str, browser: Browser) -> None:
    for name in ("index.html", "tutorial.html"):
        browser.open(f"{served}/{name}")
        browser.wait("[...document.images].every(i => i.complete)")
        widths = browser.evaluate(
            "[...document.querySelectorAll('article img')].map(i => i.naturalWidth)"
        )
        assert widths and all(width > 0 for width in widths), name


def test_dark_is_a_click_away(served: str, browser: Browser) -> None:
    browser.open(f"{served}/index.html")
    scheme = "document.body.getAttribute('data-md-color-scheme')"
    assert browser.evaluate(scheme) == "default"
    browser.click("label[title='Dark']")
    browser.wait(f"{scheme} === 'slate'")
    browser.open(f"{served}/papers/index.html")
    browser.wait(f"{scheme} === 'slate'")
    browser.click("label[title='Light']")
    browser.wait(f"{scheme} === 'default'")
