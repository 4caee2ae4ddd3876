import hashlib

import torch

from modwright.core.digest import sha256_of


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_numbers_of_a_tensor_count_as_they_lie_when_it_is_contiguous() -> None:
    ids = torch.arange(6).view(2, 3)
    little_endian = b"".join(int(i).to_bytes(8, "little") for i in range(6))
    assert sha256_of(ids) == sha256(little_endian)
    assert sha256_of(ids.T) == sha256_of(ids.T.contiguous()) != sha256_of(ids)
    assert sha256_of(torch.tensor(1.0)) == sha256(b"\x00\x00\x80?")  # no axes


def test_every_dtype_has_a_digest() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int8):
        ones = torch.ones(3, dtype=dtype)
        assert sha256_of(ones) == sha256_of(ones.clone()) != sha256_of(torch.zeros(3, dtype=dtype))
    assert sha256_of(torch.ones(2, requires_grad=True)) == sha256_of(torch.ones(2))
    assert sha256_of(torch.empty(0)) == sha256_of() == sha256(b"")


def test_parts_follow_one_another_and_json_has_no_order_of_keys() -> None:
    assert sha256_of("é", b"\x00", {"b": 1, "a": [2]}) == sha256(
        "é".encode() + b"\x00" + b'{"a": [2], "b": 1}'
    )
