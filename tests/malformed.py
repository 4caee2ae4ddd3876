"""Malformed inputs of every kind that is read, each with the command that reads it.

``python tests/malformed.py FOLDER`` makes them and runs each through the command line's entry point
in this process; it prints one line of JSON for each: name, exit code, seconds, growth of memory and
what was said. A good input refuses each of them in one line, at once and without memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = 5.0
DEEP = 100_000
ODD: tuple[Any, ...] = (-7, 10**12, 10**9, 2**70, 1.5, "text", None, True, [], [1], {}, {"a": 1})

Case = tuple[str, list[str]]


def _deep(opening: str, closing: str, count: int = DEEP) -> str:
    return opening * count + closing * count


class Maker:
    """Makes the inputs below one folder; the good ones first."""

    def __init__(self, root: Path) -> None:
        import torch

        import modwright
        from modwright.edits import Plan, remove
        from modwright.models import create_model

        self.root = root
        self.base = root / "good"
        opened = modwright.open("preset:tiny-llama")
        opened.save(self.base)
        self.header = self._header(self.base / "model.safetensors")
        anatomy = opened.anatomy
        self.plan = root / "good-plan"
        Plan.of(anatomy, "by hand", remove(anatomy.blocks[0].attention)).save(self.plan)
        self.images = root / "good-images"
        create_model("resnet18", num_classes=2).save_pretrained(self.images)
        torch.save({"a": torch.ones(2)}, root / "good.pth")

    @staticmethod
    def _header(file: Path) -> tuple[dict[str, Any], bytes]:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        return json.loads(data[8 : 8 + length]), data[8 + length :]

    def folder(self, name: str) -> Path:
        place = self.root / name
        shutil.copytree(self.base, place)
        return place

    def config(self, name: str, **changed: Any) -> Case:
        place = self.folder(name)
        fields = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**fields, **changed}))
        return name, ["inspect", str(place)]

    def file(self, name: str, inside: str, content: bytes | str) -> Case:
        place = self.folder(name)
        data = content.encode() if isinstance(content, str) else content
        (place / inside).write_bytes(data)
        return name, ["inspect", str(place)]

    def alone(self, name: str, content: bytes | str) -> Path:
        place = self.root / name
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        return place


def configs(make: Maker) -> Iterator[Case]:
    huge = {
        "vocab_size": 15_000_000,
        "intermediate_size": 5_000_000,
        "hidden_size": 10**6,
        "num_hidden_layers": 100_000,
        "num_attention_heads": 10**6,
        "num_key_value_heads": 10**6,
        "head_dim": 10**7,
        "num_labels": 10**9,
    }
    for key, value in huge.items():
        yield make.config(f"config-huge-{key}", **{key: value})
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        for index, value in enumerate(ODD[:2] + ODD[2:6] + ODD[8:]):
            yield make.config(f"config-{key}-{index}", **{key: value})
    for index, value in enumerate(([], ["llama"], 7, "", "no_such_type", {"a": 1}, None, True)):
        yield make.config(f"config-model_type-{index}", model_type=value)
    for index, value in enumerate(([42], "LlamaModel", {"a": 1}, [["x"]], 5, [None])):
        yield make.config(f"config-architectures-{index}", architectures=value)
    for index, value in enumerate(("text", {"quant_method": 3}, [1], 7, True)):
        yield make.config(f"config-quantization-{index}", quantization_config=value)
    for index, value in enumerate(
        ("text", 5, {"rope_type": "none such"}, [1], {"rope_theta": "x"})
    ):
        yield make.config(f"config-rope-{index}", rope_parameters=value)
    for index, value in enumerate((3, "no_such", [], {"a": 1})):
        yield make.config(f"config-act-{index}", hidden_act=value)
    for key, value in {"pad_token_id": 10**9, "layer_types": ["x"] * 4, "dtype": "flo"}.items():
        yield make.config(f"config-{key}", **{key: value})
    texts = {
        "deep-lists": '{"model_type":"llama","a":' + _deep("[", "]") + "}",
        "deep-dicts": '{"model_type":"llama","a":'
        + _deep('{"a":', "}").replace(":}", ":1}", 1)
        + "}",
        "deep-900": '{"model_type":"llama","a":' + _deep("[", "]", 900) + "}",
        "empty": "",
        "null": "null",
        "list": "[]",
        "number": "3",
        "cut": '{"model_type": "lla',
        "digits": '{"model_type":"llama","a":' + "9" * 10_000 + "}",
        "binary": "\x00\x01\x02" * 50,
    }
    for name, text in texts.items():
        yield make.file(f"config-text-{name}", "config.json", text)
    yield make.file("config-text-latin", "config.json", '{"a": "é"}'.encode("latin-1"))
    yield make.file("config-text-utf16", "config.json", "{}".encode("utf-16"))


def edits(make: Maker) -> Iterator[Case]:
    import modwright
    from modwright.edits import Plan, remove

    anatomy = modwright.open("preset:tiny-llama").anatomy
    done = modwright.apply(
        anatomy.model, Plan.of(anatomy, "by hand", remove(anatomy.blocks[0].attention))
    )
    good = json.loads(json.dumps(done.model.config.to_dict(), default=str))

    def linear(**kwargs: Any) -> dict[str, Any]:
        return {"op": "replace", "path": "blocks.1.mlp.up", "part": "linear", "kwargs": kwargs}

    def heads(**kwargs: Any) -> dict[str, Any]:
        return {
            "op": "replace",
            "path": "blocks.1.attention",
            "part": "attention",
            "kwargs": kwargs,
        }

    odd: list[Any] = [
        "text",
        5,
        {"a": 1},
        [5],
        [[]],
        [{}],
        [{"op": "none such", "path": "blocks.0.mlp"}],
        [{"op": "remove"}],
        [{"op": "remove", "path": 5}],
        [{"op": "remove", "path": "blocks.99.mlp"}],
        [{"op": "remove", "path": "blocks.-1.mlp"}],
        [{"op": "replace", "path": "blocks.0.mlp", "part": "os.system", "kwargs": {}}],
        [{"op": "replace", "path": "blocks.0.mlp", "part": 5, "kwargs": {}}],
        [linear(in_features=48, out_features=60_000_000)],
        [linear(in_features=10**6, out_features=3 * 10**6)],
        [linear(in_features=-1, out_features=3)],
        [linear(in_features="a", out_features=3)],
        [linear(none_such=3)],
        [heads(num_heads=10**6, num_kv_heads=10**6, head_dim=64)],
        [heads(num_heads=0)],
        [{"op": "arrange", "order": [0] * 10**6}],
        [{"op": "arrange", "order": [99]}],
        [{"op": "arrange", "order": "abc"}],
        [{"op": "remove", "path": "blocks.0.none_such"}] * 2000,
    ]
    for index, value in enumerate(odd):
        place = make.folder(f"edits-{index}")
        (place / "config.json").write_text(json.dumps({**good, "edits": value}))
        yield f"edits-{index}", ["inspect", str(place)]


def weights(make: Maker) -> Iterator[Case]:
    header, body = make.header

    def packed(changed: Any, rest: bytes = body) -> bytes:
        text = (changed if isinstance(changed, str) else json.dumps(changed)).encode()
        return struct.pack("<Q", len(text)) + text + rest

    first = next(name for name in header if name != "__metadata__")

    def entry(**changed: Any) -> dict[str, Any]:
        return {**header, first: {**header[first], **changed}}

    whole = packed(header)
    contents: dict[str, bytes] = {
        "empty": b"",
        "short": b"\x00\x01",
        "zeros": b"\x00" * 64,
        "length-huge": struct.pack("<Q", 2**62) + whole[8:],
        "length-over": struct.pack("<Q", len(whole) * 2) + whole[8:],
        "length-short": struct.pack("<Q", 10) + whole[8:],
        "no-json": packed("{]"),
        "list": packed("[]"),
        "deep": packed('{"a":' + _deep("[", "]", 5000) + "}"),
        "body-cut": whole[:-100],
        "body-half": whole[: len(whole) // 2],
        "body-gone": packed(header, b""),
        "body-long": whole + b"more",
        "shape-huge": packed(entry(shape=[2**40, 2**20])),
        "shape-minus": packed(entry(shape=[-1, 3])),
        "shape-text": packed(entry(shape="ab")),
        "shape-other": packed(entry(shape=[3, 5])),
        "dtype-odd": packed(entry(dtype="F7")),
        "dtype-none": packed(entry(dtype=None)),
        "offsets-over": packed(entry(data_offsets=[0, 2**50])),
        "offsets-back": packed(entry(data_offsets=[100, 0])),
        "offsets-overlap": packed(entry(data_offsets=[4, header[first]["data_offsets"][1] + 4])),
        "offsets-text": packed(entry(data_offsets="x")),
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "html": b"<!DOCTYPE html><html>404</html>",
        "pickle": b"\x80\x02}q\x00.",
        "zip": b"PK\x03\x04" + b"\x00" * 100,
    }
    for cut in (9, 20, 100, 1000):
        contents[f"cut-{cut}"] = whole[:cut]
    for name, content in contents.items():
        yield make.file(f"weights-{name}", "model.safetensors", content)
    fewer = {name: value for name, value in header.items() if name == "__metadata__"}
    yield make.file("weights-none", "model.safetensors", packed(fewer, b""))
    index = {
        "empty": "",
        "list": "[]",
        "no-map": "{}",
        "map-list": '{"weight_map": []}',
        "map-number": '{"weight_map": 5}',
        "map-empty": '{"weight_map": {}}',
        "missing": '{"weight_map": {"a": "model-1.safetensors"}}',
        "number": '{"weight_map": {"a": 5}}',
        "outside": '{"weight_map": {"a": "../../../etc/passwd"}}',
        "device": '{"weight_map": {"a": "/dev/zero"}}',
        "folder": '{"weight_map": {"a": "."}}',
        "deep": '{"weight_map": ' + _deep("[", "]") + "}",
        "itself": '{"weight_map": {"a": "model.safetensors.index.json"}}',
    }
    for name, text in index.items():
        place = make.folder(f"index-{name}")
        (place / "model.safetensors").unlink()
        (place / "model.safetensors.index.json").write_text(text)
        yield f"index-{name}", ["inspect", str(place)]


def kinds_of_file(make: Maker) -> Iterator[Case]:
    for inside in ("config.json", "model.safetensors"):
        for kind in ("fifo", "socket", "device", "folder", "dangling", "loop"):
            name = f"kind-{inside}-{kind}"
            place = make.folder(name)
            (place / inside).unlink()
            _odd_file(place / inside, kind)
            yield name, ["inspect", str(place)]
    commands = {
        "inspect": ["inspect"],
        "run": ["run", "-o", str(make.root / "never")],
        "plan": ["plan"],
        "apply": ["apply", "-o", str(make.root / "never")],
        "import": ["import", "-o", str(make.root / "never"), "resnet18"],
    }
    for command, words in commands.items():
        for kind in ("fifo", "socket", "device", "dangling", "loop"):
            place = make.root / f"kind-{command}-{kind}"
            _odd_file(place, kind)
            yield place.name, [*words, str(place)]


def _odd_file(place: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(place.parent)  # names of sockets are short
        try:
            socket.socket(socket.AF_UNIX).bind(place.name)
        finally:
            os.chdir(here)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "loop": place.name}[kind])


def tokenizers(make: Maker) -> Iterator[Case]:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    words = {
        "a": {"model": {"type": "BPE", "vocab": "x", "merges": []}},
        "b": [],
        "c": {"model": {"type": "none such"}},
    }
    for name, value in words.items():
        place = make.folder(f"tokenizer-{name}")
        (place / "tokenizer.json").write_text(json.dumps(value))
        yield f"tokenizer-{name}", ["eval", str(place), "--prompt", "a"]
    for name, text in {"cut": '{"model"', "deep": _deep("[", "]"), "empty": ""}.items():
        place = make.folder(f"tokenizer-{name}")
        (place / "tokenizer.json").write_text(text)
        yield f"tokenizer-{name}", ["eval", str(place), "--prompt", "a"]
    whole = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None}
    whole |= {"post_processor": None, "decoder": None, "truncation": None, "padding": None}
    whole["model"] = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    recipe = (
        "model: {}\nsteps: [{{method: arrange, blocks: '0, 1'}}]\n"
        "evaluate: {{length: 8, generate: {{prompt: a, chat: true, max_new_tokens: 1}}}}\n"
    )
    templates = {"escape": escape, "syntax": "{% if %}", "raise": "{{ raise_exception('no') }}"}
    templates["zero"] = "{{ 1 // 0 }}"
    for name, template in templates.items():
        place = make.folder(f"template-{name}")
        (place / "tokenizer.json").write_text(json.dumps(whole))
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
        (place / "tokenizer_config.json").write_text(json.dumps(told))
        file = make.alone(f"template-{name}.yaml", recipe.format(place))
        yield f"template-{name}", ["run", str(file), "-o", str(make.root / f"out-{name}")]


def ggufs(make: Maker) -> Iterator[Case]:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def key(name: str, kind: int, value: bytes) -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    def number(value: int) -> bytes:
        return struct.pack("<I", value)

    base = {
        "general.architecture": (8, text("llama")),
        "llama.block_count": (4, number(1)),
        "llama.context_length": (4, number(64)),
        "llama.embedding_length": (4, number(32)),
        "llama.feed_forward_length": (4, number(48)),
        "llama.attention.head_count": (4, number(4)),
        "llama.attention.layer_norm_rms_epsilon": (6, struct.pack("<f", 1e-5)),
    }

    def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
        sizes = b"".join(struct.pack("<Q", size) for size in shape)
        return text(name) + number(len(shape)) + sizes + number(kind) + struct.pack("<Q", offset)

    def whole(
        changed: dict[str, tuple[int, bytes]] | None = None,
        tensors: list[bytes] | None = None,
        counts: tuple[int | None, int | None] = (None, None),
        version: int = 3,
    ) -> bytes:
        keys = {**base, **(changed or {})}
        infos = [tensor("token_embd.weight", (32, 8))] if tensors is None else tensors
        many, much = counts
        head = b"GGUF" + number(version)
        head += struct.pack("<Q", len(infos) if many is None else many)
        head += struct.pack("<Q", len(keys) if much is None else much)
        data = head + b"".join(key(n, *v) for n, v in keys.items()) + b"".join(infos)
        return data + b"\x00" * (-len(data) % 32) + b"\x00" * 1024

    def array(kind: int, count: int, rest: bytes = b"") -> tuple[int, bytes]:
        return 9, struct.pack("<IQ", kind, count) + rest

    good = whole()
    contents: dict[str, bytes] = {f"cut-{n}": good[:n] for n in (4, 8, 20, 30, 60, 100, 200, 300)}
    for count in (10**5, 10**9, 2**32 - 1):
        contents[f"blocks-{count}"] = whole({"llama.block_count": (4, number(count))})
        contents[f"experts-{count}"] = whole({"llama.expert_count": (4, number(count))})
        contents[f"width-{count}"] = whole({"llama.embedding_length": (4, number(count))})
        contents[f"vocab-{count}"] = whole({"llama.vocab_size": (4, number(count))})
        contents[f"heads-{count}"] = whole({"llama.attention.head_count": (4, number(count))})
    for kind in (0, 4, 6, 8, 9, 12, 13, 255):
        contents[f"array-{kind}"] = whole({"tokenizer.ggml.tokens": array(kind, 2**40)})
        contents[f"array-wrap-{kind}"] = whole({"tokenizer.ggml.tokens": array(kind, 2**63)})
    nested = array(9, 1, struct.pack("<IQ", 9, 1) * 2000)
    lying = array(8, 5000, struct.pack("<Q", 2**60))
    contents |= {
        "keys-many": whole(counts=(None, 2**60)),
        "tensors-many": whole(counts=(2**60, None)),
        "version-0": whole(version=0),
        "version-99": whole(version=99),
        "version-big-endian": whole(version=3 << 24),
        "string-long": whole({"general.name": (8, struct.pack("<Q", 2**61) + b"abc")}),
        "string-odd": whole({"general.name": (8, struct.pack("<Q", 2) + b"\xff\xfe")}),
        "architecture-odd": whole({"general.architecture": (8, text("none such"))}),
        "architecture-number": whole({"general.architecture": (4, number(5))}),
        "architecture-binary": whole(
            {"general.architecture": (8, struct.pack("<Q", 2) + b"\xff\xfe")}
        ),
        "kind-odd": whole({"general.name": (77, b"")}),
        "alignment-0": whole({"general.alignment": (4, number(0))}),
        "alignment-3": whole({"general.alignment": (4, number(3))}),
        "alignment-huge": whole({"general.alignment": (4, number(2**31))}),
        "alignment-text": whole({"general.alignment": (8, text("x"))}),
        "nested": whole({"tokenizer.ggml.tokens": nested}),
        "lying-strings": whole({"tokenizer.ggml.tokens": lying}),
        "dims-huge": whole(tensors=[tensor("token_embd.weight", (2**40, 2**40))]),
        "dims-many": whole(tensors=[text("a") + number(2**31)]),
        "dims-zero": whole(tensors=[tensor("token_embd.weight", (0, 0))]),
        "type-odd": whole(tensors=[tensor("token_embd.weight", (32, 8), 250)]),
        "offset-over": whole(tensors=[tensor("token_embd.weight", (32, 8), 0, 2**50)]),
        "offset-wrap": whole(tensors=[tensor("token_embd.weight", (32, 8), 0, 2**64 - 32)]),
        "twice": whole(tensors=[tensor("a.weight", (8,)), tensor("a.weight", (8,))]),
        "no-tensors": whole(tensors=[]),
        "rope": whole(tensors=[tensor("rope_freqs.weight", (4,))]),
        "magic": b"GGML" + good[4:],
    }
    for name, content in contents.items():
        yield f"gguf-{name}", ["inspect", str(make.alone(f"{name}.gguf", content))]


def recipes(make: Maker) -> Iterator[Case]:
    start = f"model: {make.base}\n"
    laughs = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    texts = {
        "deep-flow": start + "steps: " + _deep("[", "]"),
        "deep-maps": start + "steps: " + _deep("{a: ", "}", 20_000),
        "deep-block": start + "steps:\n" + "".join(" " * i + "-\n" for i in range(400)),
        "laughs": start + laughs,
        "laughs-in-steps": laughs + start + "steps: *a11\n",
        "itself": start + "steps: &a [*a]\n",
        "long": start + "# " + "x" * 10**6,
        "stars": start + f"steps: [{{method: arrange, blocks: '{', '.join(['*'] * 20_000)}'}}]\n",
        "repeats": start + f"steps: [{{method: arrange, blocks: '{', '.join(['*'] * 2_000)}'}}]\n",
        "n-huge": start + "steps: [{method: llm_drop, target: mlp, n: 1000000000000}]\n",
        "tag": start + "steps: !!python/object/apply:os.system [touch x]\n",
        "binary": b"\x00\x01\x02\xff",
        "utf16": "model: x".encode("utf-16"),
        "tabs": "model:\tx\n\tsteps: y",
        "empty": "",
        "list": "[]",
        "number": "5",
        "date": "2020-99-99",
        "twice": "model: a\nmodel: b\n",
        "extends-itself": f"extends: recipe-extends-itself.yaml\n{start}",
        "extends-device": "extends: /dev/zero\n",
        "no-model": "steps: []\n",
        "model-number": "model: 5\nsteps: []\n",
        "steps-map": start + "steps: {a: 1}\n",
        "step-number": start + "steps: [5]\n",
        "method-none": start + "steps: [{method: none_such}]\n",
        "length-huge": start + "steps: []\nevaluate: {length: -5}\n",
        "digits": start + "steps: [{method: llm_drop, n: " + "9" * 9000 + "}]\n",
    }
    for name, text in texts.items():
        file = make.alone(f"recipe-{name}.yaml", text)
        yield f"recipe-{name}", ["plan", str(file)]


def plans(make: Maker) -> Iterator[Case]:
    stored = json.loads((make.plan / "plan.json").read_text())
    changes: dict[str, Any] = {
        key: {**stored, key: value}
        for key, value in {
            "format": 999,
            "structure": 5,
            "edits": "x",
            "options": [],
            "reasons": 5,
            "notes": 5,
        }.items()
    }
    changes |= {f"without-{k}": {n: v for n, v in stored.items() if n != k} for k in stored}
    changes |= {"format-text": {**stored, "format": "x"}, "list": [], "number": 5}
    changes["edit-huge"] = {
        **stored,
        "edits": [{"op": "arrange", "order": [0] * 10**5}],
    }
    texts = {name: json.dumps(value) for name, value in changes.items() if name != "without-format"}
    texts |= {"cut": '{"a"', "deep": _deep("[", "]"), "empty": "", "binary": "\x00\x01"}
    for name, text in texts.items():
        place = make.root / f"plan-{name}"
        shutil.copytree(make.plan, place)
        (place / "plan.json").write_text(text)
        out = make.root / f"out-plan-{name}"
        words = ["apply", str(place), "--model", str(make.base), "-o", str(out)]
        yield f"plan-{name}", words
    for name, content in {
        "empty": b"",
        "cut": b"\x10" * 8,
        "huge": struct.pack("<Q", 2**60),
    }.items():
        place = make.root / f"plan-tensors-{name}"
        shutil.copytree(make.plan, place)
        (place / "plan.safetensors").write_bytes(content)
        words = ["apply", str(place), "--model", str(make.base), "-o", str(make.root / "never")]
        yield f"plan-tensors-{name}", words


def images(make: Maker) -> Iterator[Case]:
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bombed = struct.pack(">I", 13) + b"IHDR" + bomb
    bombed += struct.pack(">I", zlib.crc32(b"IHDR" + bomb))
    signature = b"\x89PNG\r\n\x1a\n"
    contents = {
        "empty": b"",
        "text": b"hello",
        "huge": signature + chunk,
        "bomb": signature + bombed,
        "cut": signature + bombed[:20],
        "jpeg": b"\xff\xd8\xff\xe0" + b"\x00" * 30,
        "gif": b"GIF89a" + b"\xff" * 30,
        "tiff": b"II*\x00" + b"\xff" * 30,
    }
    for name, content in contents.items():
        file = make.alone(f"image-{name}.png", content)
        out = str(make.root / "never.png")
        yield f"image-{name}", ["upscale", str(make.images), str(file), "-o", out]
    files = {
        "pth-empty": b"",
        "pth-text": b"hello there",
        "pth-cut": (make.root / "good.pth").read_bytes()[:300],
        "pth-zip": b"PK\x03\x04" + b"\x00" * 60,
        "pth-html": b"<html></html>",
        "pth-lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "pth-long": b"\x80\x02" + b"(" * DEEP,
        "pth-long-string": b"\x80\x02X" + struct.pack("<I", 2**32 - 1),
        "pth-other": (make.root / "good.pth").read_bytes(),
    }
    for name, content in files.items():
        file = make.alone(f"{name}.pth", content)
        yield name, ["import", "resnet18", str(file), "-o", str(make.root / "never")]


KINDS: tuple[Callable[[Maker], Iterator[Case]], ...] = (
    configs,
    edits,
    weights,
    kinds_of_file,
    tokenizers,
    ggufs,
    recipes,
    plans,
    images,
)


def cases(root: Path) -> list[Case]:
    """Makes all inputs below ``root``; returns each name with its command."""
    make = Maker(root)
    return [case for kind in KINDS for case in kind(make)]


class _TooLong(BaseException):
    pass


def _alarm(*_: Any) -> None:
    raise _TooLong


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) / 1024


def run(words: list[str]) -> dict[str, Any]:
    """One command in this process: its exit code, seconds, growth in MB and words."""
    from modwright.cli.entry import run_command

    said, out = io.StringIO(), io.StringIO()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before, start = _status("VmRSS"), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
            code: Any = run_command(words)
    except _TooLong:
        code = "too long"
    except BaseException as error:
        code = f"escaped: {type(error).__name__}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "code": code,
        "seconds": round(time.monotonic() - start, 2),
        "megabytes": round(max(0.0, _status("VmHWM") - before)),
        "said": said.getvalue(),
    }


def main(root: Path, only: str = "") -> None:
    signal.signal(signal.SIGALRM, _alarm)
    made = cases(root)
    import transformers.generation

    assert transformers.generation
    limit = 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for name, words in made:
        if only in name:
            print(json.dumps({"name": name, "words": words, **run(words)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
