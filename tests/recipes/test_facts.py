"""What a report says of the files that were opened."""

from __future__ import annotations

from pathlib import Path

from modwright.checkpoint.source import Source
from modwright.recipes.run_log import opened_files


def test_fault_A19_the_size_of_what_was_opened_is_known(tmp_path: Path) -> None:
    file = tmp_path / "small.Q4_1.gguf"
    file.write_bytes(b"12345")
    gguf = Source("gguf", str(file), file)
    assert opened_files(gguf) == {"opened_file": "small.Q4_1.gguf", "opened_bytes": 5}
    folder = Source("directory", str(tmp_path), tmp_path)
    assert opened_files(folder) == {}
    (tmp_path / "pytorch_model.bin").write_bytes(b"123")
    assert opened_files(folder) == {"opened_file": "pytorch_model.bin", "opened_bytes": 3}
    for number in (1, 2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(b"1234")
    assert opened_files(folder) == {"opened_file": "2 weight files", "opened_bytes": 8}
    assert opened_files(Source("preset", "preset:tiny")) == {}
