"""Text is named, cut the same way every time, and refused with the legal values."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modwright.calibration.text import (
    TextData,
    from_sequences,
    load_text,
    text_names,
    token_windows,
    tokenize_text,
)
from modwright.core.errors import Refused

WORDS = 100


def word_tokenizer(**special: object) -> PreTrainedTokenizerFast:
    """``w0`` has id 0, ``w1`` id 1 and so on."""
    vocabulary = {f"w{index}": index for index in range(WORDS)} | {"<bos>": WORDS, "<unk>": 101}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


@pytest.fixture
def counting(tmp_path):
    """A file whose token ids are 0, 1, 2, ... 99."""
    path = tmp_path / "counting.txt"
    path.write_text(" ".join(f"w{index}" for index in range(WORDS)))
    return str(path)


def ids_of(windows) -> list[list[int]]:
    return torch.cat([batch.input_ids for batch in windows]).tolist()


def test_packaged_texts_are_found_without_importing_their_package():
    assert text_names() == ("lee", "lee-background")
    assert load_text("lee").startswith("The national executive of the strife-torn Democrats")
    assert len(load_text("lee")) == 24_658
    assert len(load_text("lee-background").split("\n")) == 300
    assert "gensim" not in sys.modules


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"gensim.*pip install --no-deps gensim"):
        load_text("lee")


def test_an_unknown_name_lists_the_names_and_the_nearest():
    with pytest.raises(Refused, match=r"lee, lee-background \(did you mean 'lee'\?\).*path"):
        load_text("leee")
    with pytest.raises(Refused, match="legal values: lee"):
        load_text("")


def test_a_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("één\r\n\r\n twee ".encode())
    assert load_text(str(path)) == "één\r\n\r\n twee "


def test_the_wrong_encoding_is_refused_with_the_file_named(tmp_path):
    path = tmp_path / "old.txt"
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(Refused, match=r"old\.txt cannot be read as 'utf-8'.*latin-1"):
        load_text(str(path))
    assert load_text(TextData(str(path), encoding="latin-1")) == "é"
    with pytest.raises(Refused, match="utf-9"):
        load_text(TextData(str(path), encoding="utf-9"))


def test_a_directory_joins_its_text_files_in_order(tmp_path):
    for name, said in {"b.txt": "two", "a": "one", "c.dat": "no", ".hidden": "no"}.items():
        (tmp_path / name).write_text(said)
    (tmp_path / "folder").mkdir()
    assert load_text(str(tmp_path)) == "one\n\ntwo"
    with pytest.raises(Refused, match=r"holds no text: expected \*\.txt"):
        load_text(str(tmp_path / "folder"))


@pytest.mark.parametrize("said", ["", " \n\n"])
def test_an_empty_text_is_refused(tmp_path, said):
    path = tmp_path / "empty.txt"
    path.write_text(said)
    with pytest.raises(Refused, match="is empty"):
        load_text(str(path))


def test_a_split_of_plain_text_is_refused_rather_than_ignored(counting):
    with pytest.raises(Refused, match="split 'test' has no meaning"):
        load_text(TextData(counting, split="test"))
    with pytest.raises(Refused, match="column 'body' has no meaning"):
        load_text(TextData("lee", column="body"))


def test_saved_datasets_are_read_by_split_and_column(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"body": ["w1 w2", "", "w3"], "number": [1, 2, 3]})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(test=rows).save_to_disk(str(tmp_path / "many"))
    one, many = (f"datasets:{tmp_path / name}" for name in ("one", "many"))
    assert load_text(TextData(one, column="body")) == "w1 w2\n\n\n\nw3"
    assert load_text(TextData(many, split="test", column="body")) == "w1 w2\n\n\n\nw3"
    with pytest.raises(Refused, match=r"split .*'train'; legal values: test"):
        load_text(TextData(many, column="body"))
    with pytest.raises(Refused, match=r"column .*'text'; legal values: body, number"):
        load_text(one)
    with pytest.raises(Refused, match="is int; it must be text"):
        load_text(TextData(one, column="number"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", json.dumps([{"text": "w1"}, {"text": "w2"}])),
        ("rows.jsonl", '{"text": "w1"}\n{"text": "w2"}\n'),
        ("rows.csv", "text,other\nw1,5\nw2,6\n"),
        ("rows.txt", "w1\nw2\n"),
    ],
)
def test_local_files_are_read_through_datasets(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert load_text(f"datasets:{tmp_path / name}") == "w1\n\nw2"
    with pytest.raises(Refused, match="legal values: train"):
        load_text(TextData(f"datasets:{tmp_path / name}", split="test"))


def test_what_datasets_cannot_read_is_one_line(tmp_path):
    (tmp_path / "rows.xml").write_text("<a/>")
    with pytest.raises(Refused, match=r"suffix '\.xml'; legal values: \.json"):
        load_text(f"datasets:{tmp_path / 'rows.xml'}")
    with pytest.raises(Refused, match="save_to_disk") as refusal:
        load_text(f"datasets:{tmp_path / 'nowhere'}")
    assert "\n" not in str(refusal.value)


def test_missing_datasets_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Refused, match=r"pip install modwright\[text\]"):
        load_text("datasets:anything")


def test_first_windows_in_order(counting):
    windows = token_windows(word_tokenizer(), counting, windows=3, length=4, batch_size=2)
    assert ids_of(windows) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [tuple(batch.input_ids.shape) for batch in windows] == [(2, 4), (1, 4)]
    assert all(batch.attention_mask is None for batch in windows)
    assert windows.batches[0].input_ids.dtype == torch.int64
    assert windows.num_tokens == 12
    assert windows.describe() == (
        f"{counting}: 3 windows x 4 tokens = 12 tokens, first windows in order, batch 2"
    )


def test_random_windows_follow_their_seed_and_keep_the_order_of_the_text(counting):
    def drawn(seed: int):
        return token_windows(word_tokenizer(), counting, windows=6, length=5, seed=seed)

    rows = ids_of(drawn(1))
    assert rows == sorted(rows)
    assert all(row == list(range(row[0], row[0] + 5)) and row[0] % 5 == 0 for row in rows)
    assert len({row[0] for row in rows}) == 6
    assert drawn(1).recipe == drawn(1).recipe
    assert drawn(1).recipe["sha256"] != drawn(2).recipe["sha256"]
    assert "random windows (seed 1)" in drawn(1).describe()


def test_all_windows_of_a_text_are_the_same_in_order_and_drawn(counting):
    ordered = token_windows(word_tokenizer(), counting, windows=10, length=10)
    drawn = token_windows(word_tokenizer(), counting, windows=10, length=10, seed=3)
    assert ids_of(ordered) == ids_of(drawn)
    assert ordered.recipe["sha256"] == drawn.recipe["sha256"]


def test_bos_is_part_of_the_length(counting):
    windows = token_windows(
        word_tokenizer(bos_token="<bos>"), counting, windows=2, length=4, bos=True
    )
    assert ids_of(windows) == [[100, 0, 1, 2], [100, 3, 4, 5]]
    assert "<bos> first in each" in windows.describe()
    with pytest.raises(Refused, match="no BOS token"):
        token_windows(word_tokenizer(), counting, windows=2, length=4, bos=True)


def test_the_recipe_is_json_and_complete(counting):
    recipe = token_windows(word_tokenizer(), counting, windows=2, length=3, seed=5).recipe
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe == {
        "data": counting,
        "split": None,
        "column": None,
        "encoding": "utf-8",
        "documents": "one file as it is",
        "vocabulary": 102,
        "windows": 2,
        "length": 3,
        "tokens": 6,
        "seed": 5,
        "order": "random windows (seed 5)",
        "batch_size": 1,
        "bos": False,
        "special_tokens": {"before": [], "after": []},
        "sha256": recipe["sha256"],
    }


def test_batches_do_not_change_the_digest(counting):
    digests = {
        token_windows(word_tokenizer(), counting, windows=4, length=3, batch_size=size).recipe[
            "sha256"
        ]
        for size in (1, 3)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"windows": 26, "length": 4}, r"25 windows of 4 .*legal values.*1\.\.25"),
        ({"windows": 1, "length": 101}, r"100 tokens: 0 windows .*the longest is 100 tokens"),
        ({"windows": 0, "length": 4}, "windows is 0; legal values: 1 and more"),
        ({"windows": 1, "length": 0}, "length is 0; legal values: 1 and more"),
        ({"windows": 1, "length": 4, "batch_size": 0}, "batch_size is 0; legal values: 1"),
    ],
)
def test_numbers_outside_their_range_name_the_legal_ones(counting, numbers, said):
    with pytest.raises(Refused, match=said):
        token_windows(word_tokenizer(), counting, **numbers)


def test_the_largest_legal_numbers_are_legal(counting):
    assert token_windows(word_tokenizer(), counting, windows=25, length=4).num_tokens == 100
    assert token_windows(word_tokenizer(), counting, windows=1, length=100).num_tokens == 100


def test_the_tokenizers_limit_holds_for_windows_and_is_silent_for_the_text(counting, monkeypatch):
    import transformers.tokenization_utils_base as base

    warned: list[str] = []
    monkeypatch.setattr(base.logger, "warning", lambda said, *_: warned.append(said))
    tokenizer = word_tokenizer(model_max_length=8)
    assert token_windows(tokenizer, counting, windows=1, length=8).num_tokens == 8
    assert warned == []
    with pytest.raises(Refused, match=r"length is 9; legal values: 1\.\.8"):
        token_windows(tokenizer, counting, windows=1, length=9)


def test_offsets_say_where_each_token_ends(counting):
    tokenized = tokenize_text(word_tokenizer(), counting, offsets=True)
    assert tokenized.ends is not None
    assert tokenized.text[: tokenized.ends[11]].endswith(" w11")
    assert tokenize_text(word_tokenizer(), counting).ends is None


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("left", [[9, 9, 1], [2, 3, 4]], [[0, 0, 1], [1, 1, 1]]),
        ("right", [[1, 9, 9], [2, 3, 4]], [[1, 0, 0], [1, 1, 1]]),
    ],
)
def test_own_sequences_are_padded_and_masked(side, ids, mask):
    sequences = [
        torch.tensor([1]),
        torch.tensor([2, 3, 4]),
        torch.tensor([5, 6], dtype=torch.int32),
    ]
    windows = from_sequences(sequences, pad_id=9, side=side, batch_size=2)
    assert windows.batches[0].input_ids.tolist() == ids
    assert windows.batches[0].attention_mask.tolist() == mask
    assert windows.batches[1].input_ids.tolist() == [[5, 6]]
    assert windows.batches[1].input_ids.dtype == torch.int64
    assert windows.num_tokens == 6
    assert windows.describe().startswith("sequences: 3 windows of up to 3 tokens = 6 tokens")
    assert json.loads(json.dumps(windows.recipe)) == windows.recipe


def test_bad_sequences_are_refused():
    with pytest.raises(Refused, match="legal values: left, right"):
        from_sequences([torch.tensor([1])], 0, side="middle")
    with pytest.raises(Refused, match=r"sequence 1 has shape \(0,\)"):
        from_sequences([torch.tensor([1]), torch.tensor([])], 0)
    with pytest.raises(Refused, match=r"shape \(1, 1\); each must be 1-D"):
        from_sequences([torch.tensor([[1]])], 0)
    with pytest.raises(Refused, match="number of sequences is 0"):
        from_sequences([], 0)
