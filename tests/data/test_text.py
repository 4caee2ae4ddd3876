"""Text is named, cut the same way every time, and refused with the valid values."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modwright.core.errors import InvalidInputError
from modwright.data.text import (
    from_sequences,
    token_windows,
    tokenize_text,
)

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
    with pytest.raises(InvalidInputError, match="no BOS token"):
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
        ({"windows": 26, "length": 4}, r"25 windows of 4 .*valid values.*1\.\.25"),
        ({"windows": 1, "length": 101}, r"100 tokens: 0 windows .*the longest is 100 tokens"),
        ({"windows": 0, "length": 4}, "windows is 0; valid values: 1 and more"),
        ({"windows": 1, "length": 0}, "length is 0; valid values: 1 and more"),
        ({"windows": 1, "length": 4, "batch_size": 0}, "batch_size is 0; valid values: 1"),
    ],
)
def test_numbers_outside_their_range_name_the_valid_ones(counting, numbers, said):
    with pytest.raises(InvalidInputError, match=said):
        token_windows(word_tokenizer(), counting, **numbers)


def test_the_largest_valid_numbers_are_valid(counting):
    assert token_windows(word_tokenizer(), counting, windows=25, length=4).num_tokens == 100
    assert token_windows(word_tokenizer(), counting, windows=1, length=100).num_tokens == 100


def test_the_tokenizers_limit_holds_for_windows_and_is_silent_for_the_text(counting, monkeypatch):
    import transformers.tokenization_utils_base as base

    warned: list[str] = []
    monkeypatch.setattr(base.logger, "warning", lambda said, *_: warned.append(said))
    tokenizer = word_tokenizer(model_max_length=8)
    assert token_windows(tokenizer, counting, windows=1, length=8).num_tokens == 8
    assert warned == []
    with pytest.raises(InvalidInputError, match=r"length is 9; valid values: 1\.\.8"):
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
    with pytest.raises(InvalidInputError, match="valid values: left, right"):
        from_sequences([torch.tensor([1])], 0, side="middle")
    with pytest.raises(InvalidInputError, match=r"sequence 1 has shape \(0,\)"):
        from_sequences([torch.tensor([1]), torch.tensor([])], 0)
    with pytest.raises(InvalidInputError, match=r"shape \(1, 1\); each must be 1-D"):
        from_sequences([torch.tensor([[1]])], 0)
    with pytest.raises(InvalidInputError, match="number of sequences is 0"):
        from_sequences([], 0)
