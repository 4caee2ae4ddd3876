"""Events of mkdocs: pages and tables that are made from the registries while the site is built.

A page asks for a table with a comment of its own line, `<!-- modwright: families -->`, so that it
reads as plain Markdown elsewhere. Pages of planned papers and of the packages of the API do not
exist as files.
"""

from __future__ import annotations

import os
import re
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import catalogue
import command_line
import component_kinds
import packages
import tables
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

MARKER = re.compile(r"^<!-- modwright: ([\w-]+) -->$", re.MULTILINE)
MAKERS = {**tables.MAKERS, **catalogue.MAKERS, **command_line.MAKERS, **packages.MAKERS}
MAKERS |= component_kinds.MAKERS


def on_config(config: Any) -> Any:
    """Papers that work and the packages enter the navigation."""
    _section(config.nav, "Papers").extend(catalogue.navigation())
    _section(_section(config.nav, "Reference"), "Python").extend(packages.navigation())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that no file holds."""
    for path, text in packages.pages().items():
        files.append(File.generated(config, path, content=text))
    for path, text in catalogue.planned_pages().items():
        page = File.generated(config, path, content=text)
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Puts tables in place of their markers, and a head above the pages of papers."""

    def made(match: re.Match[str]) -> str:
        if match[1] not in MAKERS:
            raise PluginError(
                f"{page.file.src_uri}: no table {match[1]!r}; there are {', '.join(sorted(MAKERS))}"
            )
        return MAKERS[match[1]]()

    return catalogue.with_head(page.file.src_uri, MARKER.sub(made, markdown))


def _section(nav: list[Any], title: str) -> list[Any]:
    for entry in nav:
        if isinstance(entry, dict) and title in entry:
            found: list[Any] = entry[title]
            return found
    raise PluginError(f"mkdocs.yml: the navigation has no section {title!r}")
