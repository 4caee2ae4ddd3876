"""Which tests are a paper's own, and what they take: a paper has its share of the time of CI.

Its own are the files that are called after it or after a module that only its record names, the
cases that carry its slug or its page in brackets, and not its acceptance tests: these have a budget
of their own (see evidence.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

from modwright.papers import papers

__all__ = ["of_papers"]


def _stems() -> dict[str, str]:
    """How test files of one paper alone may begin -> its slug."""
    named = Counter(module for record in papers() for module in record.modules)
    found = {f"test_{record.slug.replace('-', '_')}": record.slug for record in papers()}
    for record in papers():
        own = (module for module in record.modules if named[module] == 1)
        found |= {f"test_{module.rpartition('.')[2]}": record.slug for module in own}
    return found


def of_papers(tests: Mapping[str, float]) -> dict[str, float]:
    """Slug -> seconds of the paper's own tests, given those of every test by its node id.

    Example:
        >>> of_papers({"tests/surgery/test_modegpt_whole.py::test_a": 2.0,
        ...            "tests/test_documents.py::test_blocks[docs/papers/modegpt.md]": 1.5})
        {'modegpt': 3.5}
    """
    stems = sorted(_stems().items(), key=lambda pair: -len(pair[0]))
    cases = {key: r.slug for r in papers() for key in (f"[{r.slug}]", f"[{r.page}]")}
    found: Counter[str] = Counter()
    for nodeid, seconds in tests.items():
        file = PurePosixPath(nodeid.partition("::")[0])
        slugs = [slug for key, slug in cases.items() if nodeid.endswith(key)]
        if "acceptance" not in file.parts:
            slugs += [slug for stem, slug in stems if f"{file.stem}_".startswith(f"{stem}_")]
        if slugs:
            found[slugs[0]] += seconds
    return dict(found)
