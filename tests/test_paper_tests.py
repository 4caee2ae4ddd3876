"""What the time of a paper's tests is made of."""

from __future__ import annotations

from paper_tests import of_papers


def test_files_pages_and_cases_of_a_paper_are_its_own() -> None:
    taken = {
        "tests/surgery/test_modegpt.py::test_a[tiny-llama]": 1.0,
        "tests/surgery/test_modegpt_whole.py::test_a": 2.0,
        "tests/test_documents.py::test_blocks_run_as_they_stand[docs/papers/modegpt.md]": 4.0,
        "tests/golden/test_golden.py::test_golden[modegpt]": 8.0,
        "tests/models/test_tnt.py::test_a": 16.0,
        "tests/surgery/test_routing.py::test_a": 32.0,
        "tests/edits/test_edit_matrix.py::test_a": 64.0,
        "tests/acceptance/test_smt_digits.py::test_a": 128.0,
        "tests/nn/activations/test_fit.py::test_a": 256.0,
        "tests/training/test_fitting.py::test_a": 512.0,  # not of a module called fit
    }
    assert of_papers(taken) == {"modegpt": 15.0, "tnt": 16.0, "emoe": 32.0, "polycom": 256.0}
