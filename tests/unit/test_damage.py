"""Damaged and hostile checkpoints: told in one sentence, at once, without the memory that they ask for."""

from __future__ import annotations

import io
import os
import random
import resource
import zipfile
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime.checkpoint import FORMAT, load, open_run, save

STATE = {
    "model": "DiffuRec",
    "dataset": "small",
    "config": {"epochs": 3, "topk": [5, 10], "eval_args": {"split": {"LS": "valid_and_test"}}},
    "id_tokens": {"users": ["[PAD]", "u1"], "items": ["[PAD]", "i1", "i2"]},
    "popularity": torch.tensor([0, 3, 1]),
    "epoch": 2,
    "state_dict": {"item_embedding.weight": torch.arange(12.0).reshape(3, 4), "steps": torch.tensor(7)},
    "other_parameter": {"keys": np.arange(5, dtype=np.uint32)},
}
WRONG = [
    None,
    True,
    -1,
    10**30,
    1.5,
    float("nan"),
    "",
    "../x",
    [],
    [[]],
    [1],
    {},
    {"a": 1},
    torch.ones(()),
    torch.ones(3),
    torch.ones(2, 2),
]


def refusal(path: Path, open_it: Callable[[Path], Any] = load) -> str:
    with pytest.raises(UserError) as caught:
        open_it(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    return type(found) is type(expected) and found == expected


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pth"


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive anew, with valid sums, its records changed and without a digest."""
    with zipfile.ZipFile(path) as before:
        records = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w", compression) as after:
        for name, content in records.items():
            after.writestr(name, change(name, content))


# Damage


@pytest.mark.parametrize("sealed", [True, False], ids=["with a digest", "as of 0.1.0"])
def test_flipped_bits_are_noticed_or_change_nothing(sealed: bool, path: Path) -> None:
    if sealed:
        save(path, STATE)
    else:
        torch.save({"format": FORMAT, **STATE, "other_parameter": {}}, path)
    expected, content, draw = load(path), path.read_bytes(), random.Random(2020)
    noticed = 0
    for place in draw.sample(range(8 * len(content)), 600):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        try:
            assert same(load(path), expected)
        except UserError:
            noticed += 1
    assert noticed == 600 if sealed else noticed > 200, "without a digest the padding may be anything"


def test_content_that_was_altered_with_its_sums_is_noticed_by_the_digest(path: Path) -> None:
    save(path, STATE)
    digest = path.read_bytes()[-64:]
    rewritten(path, lambda name, content: content[::-1] if "/data/" in name else content)
    load(path)  # as one of version 0.1.0
    with zipfile.ZipFile(path, "a") as changed:
        changed.comment = digest
    assert "its digest is not that of its content" in refusal(path)


def test_a_record_that_claims_to_be_a_folder_is_no_tensor(path: Path) -> None:
    """PyTorch would give the tensor as its memory happens to be."""
    torch.save({"format": FORMAT, "weights": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as changed:
        changed.getinfo("a/data/0").external_attr |= 0x10
        changed.comment = b"x"
        changed.comment = b""
    assert "its records are not stored as PyTorch stores them" in refusal(path)


def test_equal_states_make_equal_files(path: Path) -> None:
    save(path, STATE)
    first = path.read_bytes()
    save(path, STATE)
    assert path.read_bytes() == first


# More than is there


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_compressed_archive_is_not_inflated(path: Path) -> None:
    torch.save({"format": FORMAT, "weights": torch.zeros(50_000_000)}, path)
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    before = peak()
    assert "its records are not stored as PyTorch stores them" in refusal(path)
    assert peak() - before < 50e6


def pickled(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


HUGE = b"\x8a\x05\x00\xe4\x0b\x54\x02"  # 10,000,000,000
CALLS = {
    "bytearray": b"cbuiltins\nbytearray\n" + HUGE + b"\x85R",
    "bytearray, as Python 2 wrote it": b"c__builtin__\nbytearray\n" + HUGE + b"\x85R",
    "tensor": b"ctorch\nTensor\n" + HUGE + b"\x85R",
    "encode": b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86R",
}


@pytest.mark.parametrize("call", CALLS)
def test_what_makes_objects_of_any_size_is_not_called(call: str, path: Path) -> None:
    torch.save({"weights": torch.ones(2)}, path)
    rewritten(path, lambda name, content: pickled(CALLS[call]) if name.endswith("data.pkl") else content)
    before = peak()
    assert "it holds more than tensors and plain values, so it was not opened" in refusal(path)
    assert peak() - before < 50e6


def test_a_text_that_looks_like_an_import_is_a_text(path: Path) -> None:
    text = "cbuiltins\nbytearray\n"
    save(path, {"text": text})
    assert load(path)["text"] == text


def shared_lists(levels: int) -> list[Any]:
    nested: list[Any] = [0]
    for _ in range(levels):
        nested = [nested, nested]
    return nested


def deep_lists(levels: int) -> list[Any]:
    nested: list[Any] = [0]
    for _ in range(levels):
        nested = [nested]
    return nested


def endless() -> list[Any]:
    nested: list[Any] = []
    nested.append(nested)
    return nested


# scipy would look its column up in the memory behind the matrix.
BEYOND_THE_SHAPE = {
    "__csr__": {"data": torch.ones(1), "indices": torch.tensor([9]), "indptr": torch.tensor([0, 1]), "shape": [1, 2]}
}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (shared_lists(40), "its values refer to each other again and again"),
        (deep_lists(60), "its values refer to each other again and again"),
        (endless(), "its values refer to each other again and again"),
        ([torch.ones(100_000)] * 100, "its tensors are larger than what it holds of them"),
        (torch.ones(1).expand(10**9), "its tensors are larger than what it holds of them"),
        (10**5000, "it holds more than tensors and plain values"),
        ((1, 2), "it holds a tuple"),
        (bytearray(5), "it holds more than tensors and plain values"),
        ({"__array__": 5}, "is damaged"),
        ({"__array__": torch.ones(2, dtype=torch.bfloat16)}, "is damaged"),
        (BEYOND_THE_SHAPE, "is damaged"),
        ({"__sparse__": {"indices": torch.tensor([[9]]), "values": torch.ones(1), "shape": [2], "coalesced": True}},
         "is damaged"),
    ],
    ids=["shared", "deep", "endless", "one tensor", "stride 0", "digits",
         "tuple", "bytes", "array", "bf16", "csr", "coo"],
)  # fmt: skip
def test_values_that_would_grow(value: Any, problem: str, path: Path) -> None:
    torch.save({"format": FORMAT, "value": value}, path)
    before = peak()
    assert problem in refusal(path)
    assert peak() - before < 50e6


def test_tied_weights_and_expanded_ones_are_kept(path: Path) -> None:
    table = torch.ones(100, 8)
    save(path, {"state_dict": {"a": table, "b": table, "c": table[0], "expanded": torch.ones(1).expand(1000)}})
    found = load(path)["state_dict"]
    assert torch.equal(found["b"], table) and found["expanded"].shape == (1000,)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    assert "is no regular file" in refusal(path)


# Wrong types


def nodes(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(place for key, value in below for place in nodes(value, (*at, key)))]


def replaced(node: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    other = dict(node) if isinstance(node, dict) else list(node)
    other[at[0]] = replaced(node[at[0]], at[1:], value)
    return other


def test_a_value_of_any_type_in_any_place(path: Path) -> None:
    """Opened where it may be anything, refused with the name of its place elsewhere."""
    plain = {**STATE, "format": FORMAT, "other_parameter": {}}
    outcomes = {"opened": 0, "refused": 0}
    for at in nodes(plain):
        for value in WRONG:
            torch.save(replaced(plain, at, value), path)
            try:
                open_run(path)
                outcomes["opened"] += 1
            except UserError as error:
                assert "\n" not in str(error) and str(path) in str(error)
                outcomes["refused"] += 1
    assert outcomes["refused"] > 200 and outcomes["opened"] > 50


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (("id_tokens", "items"), None, "is damaged (id_tokens.items: "),
        (("id_tokens", "items", 1), 5, "is damaged (id_tokens.items.1: "),
        (("epoch",), "2", "is damaged (epoch: "),
        (("epoch",), True, "is damaged (epoch: "),
        (("popularity",), torch.ones(2, dtype=torch.long), "a count for each of 3 items"),
        (("popularity",), torch.ones(3), "a count for each of 3 items"),
        (("popularity",), torch.tensor([0, -3, 1]), "a count for each of 3 items"),
        (("popularity",), torch.tensor([False, True, True]), "a count for each of 3 items"),
        (("popularity",), torch.ones(3, dtype=torch.uint16), "a count for each of 3 items"),
        (("state_dict", "steps"), 7, "is damaged (state_dict.steps: "),
        (("config", "epochs"), torch.ones(3), "is damaged (config: "),
    ],
)
def test_the_place_is_named(at: tuple[Any, ...], value: Any, problem: str, path: Path) -> None:
    save(path, replaced(STATE, at, value))
    assert problem in refusal(path, open_run)


def test_what_is_missing_is_named(path: Path) -> None:
    save(path, {key: value for key, value in STATE.items() if key not in ("epoch", "config")})
    assert "lacks config, epoch: give a file that a run wrote" in refusal(path, open_run)


def test_a_sound_checkpoint_is_what_was_written(path: Path) -> None:
    save(path, STATE)
    opened = open_run(path)
    assert all(same(opened[key], STATE[key]) for key in STATE if key != "other_parameter")
    buffer = io.BytesIO(path.read_bytes())
    assert torch.load(buffer, weights_only=True)["epoch"] == 2, "PyTorch opens it as well"
