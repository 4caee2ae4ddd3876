"""What a GGUF file says of itself: its tensors, and the config that its metadata become."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import transformers

from modwright.checkpoint.gguf_metadata import ROTARY_FACTORS, settle
from modwright.checkpoint.plausible import require_counts
from modwright.core.compat.tools import read_number
from modwright.core.errors import CheckpointError, first_line
from modwright.core.reading import require_regular

__all__ = ["Header", "StoredTensor", "copy_field", "has_rules", "read_header"]

# No config holds a longer list: there are as many as layers or heads. Vocabularies are longer.
_LONGEST_LIST = 4096
_WIDEST_ALIGNMENT = 2**16


class StoredTensor(NamedTuple):
    """One tensor of the file: its shape in torch's order, and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    nbytes: int


class Header(NamedTuple):
    """A GGUF file without its values: the architecture is as llama.cpp calls it."""

    architecture: str
    tensors: tuple[StoredTensor, ...]
    config: transformers.PreTrainedConfig


def read_header(file: Path, *, settled: bool = True) -> Header:
    """Read the header of a GGUF file.

    Args:
        file: the GGUF file.
        settled: hold the config against every key of the file (`gguf_metadata.settle`); without,
            it is what transformers' parser makes of it.

    Raises:
        CheckpointError: damaged, cut short, of another byte order, or it says what is not read.
        ValueError: transformers does not know the architecture.
    """
    require_regular(file)
    try:
        reader = _Reader(file)
    except (ArithmeticError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({first_line(error)}); copy or download it again"
        ) from error
    architecture = reader.get_field("general.architecture")
    if reader.byte_order != "I":
        raise CheckpointError(f"{file} is written in the byte order of another kind of machine")
    if architecture is None:
        raise CheckpointError(f"{file} does not name its architecture (general.architecture)")
    tensors = tuple(
        StoredTensor(t.name, _shape(t), t.tensor_type, int(t.data_offset), int(t.n_bytes))
        for t in reader.tensors
    )
    name = str(architecture.contents())
    keys = {key: f.contents() if f.data else None for key, f in reader.fields.items()}
    own = {key.rpartition(".")[2]: value for key, value in keys.items() if key.startswith(name)}
    require_counts(own, (tensor.shape for tensor in tensors), str(file))
    config = _parse(file) if has_rules(name) else _parse_without_vocabulary(reader)
    if settled:
        factors = [t for t in reader.tensors if t.name == ROTARY_FACTORS]
        values = [gguf.dequantize(t.data, t.tensor_type).reshape(-1) for t in factors]
        settle(file, name, keys, config, values[0] if values else None)
    return Header(name, tensors, config)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def has_rules(architecture: str) -> bool:
    """transformers reads some architectures lazily by rules of its own; before 5.18 it had none."""
    try:
        from transformers.integrations.gguf import is_gguf_arch_supported
    except ImportError:
        return False
    return bool(is_gguf_arch_supported(architecture))


class _Reader(gguf.GGUFReader):
    """A reader that steps over long lists: of those it keeps only how long they are."""

    def _get_str(self, offset: int) -> Any:
        self._require(offset, 8, 1)
        self._require(offset + 8, read_number(self, offset, np.uint64), 1)
        return super()._get_str(offset)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != gguf.GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        self._require(orig_offs, 12, 1)
        inner = gguf.GGUFValueType(read_number(self, orig_offs, np.uint32))
        count = read_number(self, orig_offs + 4, np.uint64)
        if inner == gguf.GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        text = inner == gguf.GGUFValueType.STRING
        width = 8 if text else np.dtype(self.gguf_scalar_to_np[inner]).itemsize
        self._require(orig_offs + 12, count, width)
        if count <= _LONGEST_LIST:
            return super()._get_field_parts(orig_offs, raw_type)
        size = 12
        if text:
            view = memoryview(self.data)[orig_offs:]
            for _ in range(count):
                size += 8 + int.from_bytes(view[size : size + 8], "little")
            self._require(orig_offs, size, 1)
        else:
            size += count * width
        return size, [np.array([count])], [], [gguf.GGUFValueType.ARRAY, inner]

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        alignment = int(self.alignment)
        if not 1 <= alignment <= _WIDEST_ALIGNMENT or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment}, no power of two below 65,537")
        super()._build_tensors(start_offs, fields)

    def _require(self, offset: int, count: int, width: int) -> None:
        """Refuse lengths that reach beyond the end of the file before they are gone through."""
        if offset + count * width > len(self.data):
            raise ValueError(f"a length of {count:,} at byte {offset:,} reaches beyond its end")


def _parse(file: Path) -> transformers.PreTrainedConfig:
    config = transformers.AutoConfig.from_pretrained(
        str(file.parent), gguf_file=file.name, local_files_only=True
    )
    config.name_or_path = ""
    return config


def _parse_without_vocabulary(reader: _Reader) -> transformers.PreTrainedConfig:
    """The parser gets a copy of the header without long lists.

    It turns every word of the vocabulary into numpy views and Python strings to find a dozen
    numbers, which takes seconds and more memory than the rest of the opening.
    """
    with tempfile.TemporaryDirectory(prefix="modwright-") as folder:
        header = Path(folder, "header.gguf")
        _write_header(reader, header)
        config = _parse(header)
    words = reader.get_field("tokenizer.ggml.tokens")
    stated = any(name.endswith(".vocab_size") for name in reader.fields)
    if words is not None and not words.data and not stated:
        config.vocab_size = int(words.parts[-1][0])
    return config


def _write_header(reader: _Reader, file: Path) -> None:
    """The same header without the lists that were stepped over, as a file of the same length.

    The length is a hole that takes no room on disk: a reader maps the tensors it never looks at.
    """
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        about = field.name.startswith("GGUF.") or field.name == "general.architecture"
        if field.data and field.types and not about:
            copy_field(writer, field)
    for tensor in reader.tensors:
        size, kind = int(tensor.n_bytes), tensor.tensor_type
        writer.add_tensor_info(tensor.name, _shape(tensor), np.dtype(np.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    room = sum(int(tensor.n_bytes) + reader.alignment for tensor in reader.tensors)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + room + 2 * reader.alignment)


def copy_field(writer: gguf.GGUFWriter, field: gguf.ReaderField) -> None:
    """Writes an entry of another file's metadata as it stands there."""
    inner = field.types[-1] if len(field.types) > 1 else None
    writer.add_key_value(field.name, field.contents(), field.types[0], inner)
