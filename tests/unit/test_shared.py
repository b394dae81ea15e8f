"""Files of shared models: they open as they were written, or are refused in one sentence that names them."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import shared
from recbole_diffurec.runtime.checkpoint import save
from recbole_diffurec.runtime.shared import content, open_model

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

ABOUT: Any = {
    "format": shared.FORMAT,
    "version": "0.1.0",
    "model": "DiffuRec",
    "dataset": "small",
    "config": {"epochs": 3, "topk": [5, 10], "eval_args": {"split": {"LS": "valid_and_test"}}, "seq_len": None},
    "items": ["[PAD]", "i1", 'é "quoted"'],
    "popularity": [0, 3, 1],
    "item_columns": {"title:token_seq": ["", "One", "Two"]},
    "n_users": 5,
    "data": {"users": 4, "items": 2, "interactions": 9, "digests": {"set of item ids": "00ff"}},
    "epoch": 2,
    "valid_result": {"ndcg@10": 0.25, "hit@10": 1},
}
TABLE = torch.arange(12.0).reshape(3, 4)
# Two names for one tensor, and a view.
WEIGHTS = {"item_embedding.weight": TABLE, "tied": TABLE, "row": TABLE[:, 1], "steps": torch.tensor(7)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def sealed(text: str, weights: dict[str, torch.Tensor] | None = None) -> bytes:
    """A file with any text as what is told of the model, whose digest is right."""
    tensors = {"a": torch.ones(2)} if weights is None else weights
    bare = safetensors.save(tensors, {"recbole_diffurec": text})
    begin = 8 + int.from_bytes(bare[:8], "little")
    digest = hashlib.sha256(text.encode() + bare[begin:]).hexdigest()
    return safetensors.save(tensors, {"recbole_diffurec": text, "sha256": digest})


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_model(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["model.safetensors", "renamed.bin"])
def test_it_opens_as_it_was_written(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content(ABOUT, WEIGHTS))
    state: Any = open_model(file)
    for key in ("model", "dataset", "config", "item_columns", "n_users", "data", "epoch", "valid_result"):
        assert state[key] == ABOUT[key]
    assert state["id_tokens"] == {"items": ABOUT["items"]}, "users are not named"
    assert torch.equal(state["popularity"], torch.tensor([0, 3, 1]))
    assert state["state_dict"].keys() == WEIGHTS.keys()
    assert all(torch.equal(state["state_dict"][key], WEIGHTS[key]) for key in WEIGHTS)
    assert safetensors.load_file(file).keys() == WEIGHTS.keys(), "others read the weights as well"


def test_the_same_model_is_the_same_file() -> None:
    assert len({content(ABOUT, WEIGHTS) for _ in range(10)}) == 1


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    whole = content(ABOUT, WEIGHTS)
    for length in [*range(12), *range(12, len(whole), 37), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:length])
        assert "damaged, cut short or no safetensors file" in refusal(path)
    path.write_bytes(whole + b"\0")
    refusal(path)


def test_a_changed_bit_is_noticed_wherever_it_matters(path: Path) -> None:
    whole = content(ABOUT, WEIGHTS)
    path.write_bytes(whole)
    sound = open_model(path)
    draw, refused = random.Random(0), 0
    for place in [*draw.sample(range(len(whole)), 250), *range(len(whole) - 20, len(whole))]:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            found: Any = open_model(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        for key in ABOUT.keys() & sound.keys() - {"format", "popularity"}:
            assert found[key] == sound[key], place  # type: ignore[literal-required]
        named = {key for key in WEIGHTS if key in found["state_dict"]}
        assert all(torch.equal(found["state_dict"][key], WEIGHTS[key]) for key in named)
    assert refused > 240


def test_a_pickle_under_this_name_is_not_run(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"

    class Payload:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch '{made}'",)

    path.write_bytes(pickle.dumps(Payload()))
    refusal(path)
    torch.save({"state_dict": Payload()}, path)
    refusal(path)
    assert not made.exists()
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert made.exists(), "the payload is a live one"


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8 + b"{}",
        (100_000_001).to_bytes(8, "little") + b"{",
        (2).to_bytes(8, "little") + b"[]",
        (3).to_bytes(8, "little") + b"{a}",
        b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"object","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"recbole_diffurec":{"a":1}}}',
        b'{"__metadata__":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_headers_that_ask_for_more_than_there_is(header: bytes, path: Path) -> None:
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.write_bytes(
        (header if not header.startswith(b"{") else len(header).to_bytes(8, "little") + header) + b"\0" * 4
    )
    assert "damaged, cut short or no safetensors file" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun < 200_000  # KiB


def test_texts_that_are_no_description(path: Path) -> None:
    for text in ("", "null", "[]", "{", "[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "NaN"):
        path.write_bytes(sealed(text))
        assert "is damaged" in refusal(path)


WRONG = [None, True, -1, 10**30, 1.5, "", "../x", [], [[]], [1], {}, {"a": 1}, {"a": {"b": [None]}}]


def test_every_value_of_another_kind(path: Path) -> None:
    refused = 0
    for key in ABOUT:
        path.write_bytes(sealed(json.dumps({name: value for name, value in ABOUT.items() if name != key})))
        assert key in refusal(path)
        for value in WRONG:
            path.write_bytes(sealed(json.dumps({**copy.deepcopy(ABOUT), key: value})))
            try:
                open_model(path)
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"popularity": [0, 3]}, "a count for each of 3 items"),
        ({"popularity": [0, 3, -1]}, "popularity.2"),
        ({"items": ["[PAD]"], "popularity": [0], "item_columns": {}}, "a count for each of 1 items"),
        ({"item_columns": {"title:token": ["a"]}}, "not one cell for each item"),
        ({"n_users": 2**40}, "n_users"),
        ({"format": "recbole_diffurec model 9"}, "format"),
        ({"epoch": "2"}, "epoch"),
        ({"items": ["[PAD]", 1, 2]}, "items.1"),
    ],
)
def test_the_place_is_named(changed: dict[str, Any], problem: str, path: Path) -> None:
    path.write_bytes(sealed(json.dumps({**ABOUT, **changed})))
    assert problem in refusal(path)


def test_weights_alone_say_not_whose_they_are(path: Path) -> None:
    safetensors.save_file({"a": torch.ones(2)}, path)
    assert "holds weights alone" in refusal(path)


def test_what_is_no_file(path: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(path)
    path.mkdir()
    assert "is no regular file" in refusal(path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is no regular file" in refusal(tmp_path / "pipe.safetensors")


def test_a_checkpoint_opens_by_the_same_function(tmp_path: Path) -> None:
    state = {key: ABOUT[key] for key in ("model", "dataset", "config", "epoch", "data", "item_columns")}
    state |= {"id_tokens": {"users": ["[PAD]", "u"], "items": ABOUT["items"]}, "popularity": torch.tensor([0, 3, 1])}
    state |= {"state_dict": WEIGHTS, "other_parameter": {}, "history": [{"epoch": 2, "valid_result": {"hit@5": 0.5}}]}
    save(tmp_path / "a.pth", state)
    opened = open_model(tmp_path / "a.pth")
    assert opened["n_users"] == 2 and opened["valid_result"] == {"hit@5": 0.5}
    state["history"][:0] = [None, {"epoch": torch.ones(2, 2)}, {"epoch": []}]
    save(tmp_path / "a.pth", state)
    assert open_model(tmp_path / "a.pth")["valid_result"] == {"hit@5": 0.5}


def test_a_header_that_nobody_could_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_LONGEST_HEADER", 500)
    with pytest.raises(UserError, match="the header of a safetensors file at most 500: share the checkpoint"):
        content(ABOUT, WEIGHTS)
