from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from rich.console import Console

from modwright.anatomy import Anatomy
from modwright.core.errors import InvalidInputError
from modwright.cost import (
    Cost,
    Speed,
    TimingStats,
    Tree,
    count,
    describe,
    inspect,
    measure_speed,
)
from modwright.cost.tree import Node

VOID = {"br", "hr", "img", "meta", "link", "input"}


class Checker(HTMLParser):
    """Collects text; fails when tags do not nest or something would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe", "img"}
        assert not {"src", "href"} & {name for name, _ in attrs}
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert "http" not in page and "url(" not in page
    return checker


def in_terminal(shown: Any, width: int = 120) -> str:
    console = Console(width=width, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_numbers_of_a_node_are_the_sums_of_its_children(model: Any) -> None:
    tree = inspect(model, length=20)
    for node in tree.root.walk():
        if node.children:
            for name in ("parameters", "bytes", "macs"):
                total = sum(getattr(child, name) for child in node.children)
                assert getattr(node, name) == total, (node.address, name)
    counted = count(model, length=20)
    assert tree.root.parameters == counted.parameters
    assert tree.root.bytes == counted.stored_bytes
    assert tree.root.macs == counted.prefill_macs


def test_every_part_and_every_map_has_its_node(model: Any) -> None:
    anatomy = Anatomy.of(model)
    tree = inspect(anatomy)
    for address, part in anatomy.parts():
        assert tree.find(address).description.startswith(describe(part))
    for block in anatomy.blocks:
        for _, sublayer in block.sublayers():
            for projection in sublayer.projections().values():
                node = tree.find(projection.address)
                assert node.parameters == projection.num_parameters
        roles = [child.name for child in tree.find(block.address).children]
        assert roles[:2] == ["attention", "mlp"]


def test_descriptions(make: Any, edit: Any) -> None:
    llama = inspect(make("tiny-llama"))
    assert llama.root.description == "llama, 4 blocks, 48 wide, float32"
    assert llama.find("embed").description == "128 x 48"
    assert llama.find("blocks.3").description == "pre-norm"
    assert llama.find("blocks.3.attention").description == "6 heads, 2 kv, qk 12, v 12"
    assert llama.find("blocks.3.attention.k").description == "48 -> 24"
    assert llama.find("blocks.3.attention.scores").description == "6 heads x 512 x 512"
    assert llama.find("blocks.3.mlp").description == "gated, 96 wide, silu"
    assert llama.find("blocks.3.mlp_norm").description == "rms, eps 1e-06"
    assert llama.find("head").description == "48 -> 128, tied to embed"
    gpt2 = inspect(make("tiny-gpt2"))
    assert gpt2.find("blocks.0.mlp").description == "192 wide, gelu_new"
    assert gpt2.find("blocks.0.attention.q").description == "48 -> 48, bias"
    assert inspect(make("tiny-gpt-neox")).find("blocks.0").description == "parallel-norm"
    bert = inspect(make("tiny-bert"))
    assert bert.root.children[-1].address == "other"
    assert bert.find("blocks.0").description == "post-norm"
    factors = inspect(edit(make("tiny-llama"), "factor pairs"))
    assert factors.find("blocks.1.mlp.up").description == "48 -> 5 -> 96"
    uneven = inspect(edit(make("tiny-llama"), "uneven heads"))
    assert uneven.find("blocks.1.attention").description == (
        "3 heads, 2 kv, qk 12, v 12, groups of unequal size"
    )
    assert uneven.find("blocks.1.attention.rest").bytes == 3 * 8


def test_lines_of_experts_add_up_to_their_mixture(make: Any) -> None:
    tree = inspect(make("tiny-mixtral"), length=20)
    mixture = tree.find("blocks.0.mlp")
    assert mixture.description == "2 of 4 experts, 64 wide, silu"
    assert tree.find("blocks.0.mlp.router").macs == 20 * 4 * 48
    assert tree.find("blocks.0.mlp.experts.3.down").macs == 20 * 48 * 64 * 2 // 4
    assert [line.name for line in mixture.children if line.kind != "projection"] == []
    assert all(node.macs >= 0 for node in tree.root.walk())


def test_removed_parts_are_told(make: Any, edit: Any) -> None:
    tree = inspect(edit(make("tiny-llama"), "first attention removed"))
    gone = tree.find("blocks.0.attention")
    assert (gone.description, gone.parameters, gone.macs, gone.children) == ("removed", 0, 0, ())
    assert [child.name for child in tree.find("blocks.0").children] == [
        "attention",
        "mlp",
        "mlp_norm",
    ]


def test_a_model_without_weights_has_the_same_tree(dense: Any) -> None:
    with torch.device("meta"):
        empty = type(dense)(dense.config)
    assert inspect(empty) == inspect(dense)


def test_alike_neighbours_share_a_line(make: Any, edit: Any) -> None:
    def labels(model: Any) -> list[str]:
        return [group.label for group in inspect(model).find("blocks").groups()]

    assert labels(make("tiny-llama")) == ["blocks 0-3 (4 x)"]
    assert labels(edit(make("tiny-llama"), "first attention removed")) == [
        "block 0",
        "blocks 1-3 (3 x)",
    ]
    assert labels(edit(make("tiny-llama"), "narrow mlp")) == [
        "block 0",
        "block 1",
        "blocks 2-3 (2 x)",
    ]


def test_terminal_view(make: Any, edit: Any) -> None:
    text = in_terminal(inspect(make("tiny-llama")))
    assert "blocks 0-3 (4 x)" in text
    assert text.count("6 heads, 2 kv, qk 12, v 12") == 1
    assert "a line for several blocks" in " ".join(text.split())
    assert "98.7 k" in text and "394.9 kB" in text and "100 %" in text
    removed = in_terminal(inspect(edit(make("tiny-llama"), "first attention removed")))
    assert "removed" in removed and "blocks 1-3 (3 x)" in removed
    narrow = in_terminal(inspect(make("tiny-bert")), 80)
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert "blocks 0-3 (4 x)" in narrow and "attention_norm" in narrow


def test_html_is_well_formed_and_self_contained(model: Any) -> None:
    tree = inspect(model)
    checker = checked(tree._repr_html_())
    assert "details" in checker.tags and "summary" in checker.tags
    assert tree.root.description in checker.text
    assert "100.0 % of all parameters" in tree._repr_html_()
    checked(count(model)._repr_html_())


def test_html_of_an_anatomy(make: Any) -> None:
    anatomy = Anatomy.of(make("tiny-llama"))
    text = "".join(checked(inspect(anatomy)._repr_html_()).text)
    assert "blocks 0-3 (4 x)" in text
    assert "512 tokens" in text and "MACs each" in text


def test_html_is_escaped() -> None:
    tree = Tree(Node("", "model", "<b>bold</b> & 'so on'", 1, 4, 0), 8)
    assert "<b>bold" not in tree._repr_html_()
    assert "<b>bold</b> & 'so on'" in checked(tree._repr_html_()).text
    assert "[red]" in in_terminal(Tree(Node("", "model", "[red]x", 1, 4, 0), 8))


def test_json_lists_every_block(make: Any) -> None:
    told = json.loads(json.dumps(inspect(make("tiny-llama"), length=9).to_dict()))
    assert told["length"] == 9
    blocks = next(c for c in told["model"]["children"] if c["address"] == "blocks")
    assert [block["address"] for block in blocks["children"]] == [f"blocks.{i}" for i in range(4)]
    assert repr(inspect(make("tiny-llama"))) == (
        "Tree(llama, 4 blocks, 48 wide, float32: 98.7 k parameters)"
    )


def test_refusals(make: Any) -> None:
    with pytest.raises(InvalidInputError, match="length must be a whole number, 1 or more, not 0"):
        inspect(make("tiny-llama"), length=0)
    with pytest.raises(
        InvalidInputError, match=r"no part at 'blocks\.9'.*embed, blocks, final_norm, head"
    ):
        inspect(make("tiny-llama")).find("blocks.9")


def test_cost_in_terminal_and_html(make: Any) -> None:
    counted: Cost = count(make("tiny-llama"), length=300)
    text = in_terminal(counted)
    assert "total" in text and "decode" in text and "394.9 kB" in text
    assert "256 positions" in " ".join(text.split())
    assert "decode" not in in_terminal(count(make("tiny-bert")))
    page = "".join(checked(counted._repr_html_()).text)
    assert "blocks.3.mlp_norm" in page and "half of torch" in page


def test_speed_in_terminal_and_html(make: Any) -> None:
    speed: Speed = measure_speed(make("tiny-gpt2"), prompt=4, new_tokens=2, repeats=1)
    for shown in (in_terminal(speed), "".join(checked(speed._repr_html_()).text)):
        assert "prefill" in shown and "decode" in shown and "tokens/s" in shown
    assert repr(speed).startswith("Speed(prefill ")
    assert TimingStats.of([3.0, 1.0, 2.0]) == TimingStats(2.0, 1.0, 3.0)
