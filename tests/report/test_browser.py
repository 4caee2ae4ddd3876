"""The page in a real browser: sorting by click, and no sideways scrolling on a phone."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modwright.report import Report, render_html

pytestmark = pytest.mark.slow

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=5000",
    "--window-size=1280,900",
]

# The report stands in a frame of a phone's width, which shares the origin of the page around it.
AROUND = """<!doctype html><meta charset="utf-8">
<iframe id="phone" width="400" height="800" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const inside = document.getElementById("phone").contentDocument;
  const table = inside.querySelector("table.sortable");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].firstChild.data);
  const heads = [...table.querySelectorAll("thead th")];
  const sorts = () => heads.map((head) => head.getAttribute("aria-sort"));
  const click = (label) => {{
    heads.find((head) => head.textContent.trim() === label).querySelector("button").click();
    return [names(), sorts()];
  }};
  const root = inside.documentElement;
  const found = {{start: [names(), sorts()], folded: root.scrollWidth, width: root.clientWidth}};
  found.up = click("Perplexity");
  found.down = click("Perplexity");
  found.back = click("Stage");
  for (const details of inside.querySelectorAll("details")) details.open = true;
  found.unfolded = root.scrollWidth;
  found.tables = [...inside.querySelectorAll("table")].every((t) => t.closest(".scroll"));
  found.figures = [...inside.querySelectorAll("figure svg")].map((s) => s.clientWidth);
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


@pytest.fixture(scope="module")
def found(example: Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if BROWSER is None:
        if os.environ.get("MODWRIGHT_REQUIRE_BROWSER") == "1":
            pytest.fail("MODWRIGHT_REQUIRE_BROWSER=1, but no chromium is on the PATH")
        pytest.skip("no chromium on the PATH")
    folder = tmp_path_factory.mktemp("browser")
    file = folder / "around.html"
    file.write_text(AROUND.format(page=html.escape(render_html(hard(example)))), encoding="utf-8")
    dump = run(BROWSER, file, folder / "profile")
    inside = re.search(r'<pre id="found">(.*?)</pre>', dump, re.DOTALL)
    assert inside is not None and inside[1], dump[-2000:]
    values: dict[str, Any] = json.loads(html.unescape(inside[1]))
    return values


def hard(example: Report) -> Report:
    """The example with what makes pages wide: long words, and a step with no number."""
    long = "x" * 300
    after = replace(
        example.after,
        notes=[long],
        options={long: long},
        servable={"a": long},
        measured={**example.after.measured, "generation": {"prompt": long, "text": long}},
    )
    broken = replace(
        example.after,
        name="3 broken",
        measured={
            **example.after.measured,
            "perplexity": {"value": None, "finite": False},
        },
    )
    return replace(
        example,
        title=long,
        stages=[example.stages[0], after, example.stages[1], broken],
        recipe={"path": long},
        reproduce=long,
    )


def run(browser: str, file: Path, profile: Path) -> str:
    command = [browser, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_a_click_sorts_by_number_with_missing_values_last(found: dict[str, Any]) -> None:
    start, up, down, back = (found[key][0] for key in ("start", "up", "down", "back"))
    assert start == ["before", "2 modegpt", "1 llm_drop", "3 broken"]
    assert up == ["before", "1 llm_drop", "2 modegpt", "3 broken"]
    assert down == ["2 modegpt", "1 llm_drop", "before", "3 broken"]
    assert back == start


def test_the_sorted_column_says_so(found: dict[str, Any]) -> None:
    assert set(found["start"][1]) == {"none"}
    assert found["up"][1][3] == "ascending" and found["down"][1][3] == "descending"
    assert found["back"][1] == ["ascending", *["none"] * (len(found["start"][1]) - 1)]


def test_a_phone_does_not_scroll_sideways(found: dict[str, Any]) -> None:
    assert found["width"] <= 400
    assert found["folded"] <= 400
    assert found["unfolded"] <= 400
    assert found["tables"], "every table has a scroll container of its own"


def test_figures_fill_a_phone(found: dict[str, Any]) -> None:
    assert found["figures"] and all(330 <= width <= 400 for width in found["figures"])
