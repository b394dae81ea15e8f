"""Checkpoints: what goes in comes out, files are whole, and opening one runs nothing."""

from __future__ import annotations

import math
import os
import pickle
import random
import stat
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from scipy import sparse

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime.checkpoint import FORMAT, from_plain, load, save, to_plain

PLAIN = (type(None), bool, int, float, str, list, dict, torch.Tensor)


def same(found: Any, expected: Any) -> bool:
    """Equality of values and of types, through containers; tuples become lists."""
    if isinstance(expected, np.ndarray):
        both = isinstance(found, np.ndarray) and found.dtype == expected.dtype and found.shape == expected.shape
        return both and found.tobytes() == np.ascontiguousarray(expected).tobytes()
    if isinstance(expected, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        if type(found) is not dict or list(found) != list(expected):
            return False
        return all(type(a) is type(b) for a, b in zip(found, expected)) and all(
            same(found[k], expected[k]) for k in found
        )
    if isinstance(expected, (list, tuple)):
        return type(found) is list and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float) and math.isnan(expected):
        return type(found) is float and math.isnan(found)
    return type(found) is type(expected) and found == expected


def is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) in PLAIN and is_plain(item) for key, item in value.items())
    return all(map(is_plain, value)) if type(value) is list else type(value) in PLAIN


# to_plain and from_plain

MATRIX = sparse.csr_matrix(([1.5, -2.0], ([0, 2], [3, 1])), shape=(4, 6))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        5,
        -(2**63),
        0.1,
        float("inf"),
        "nan\n\0é",
        [],
        {},
        [1, [2.0, ["3", None]], {"a": {"b": []}}],
        {1: "integer key", "1": "text key"},
        np.arange(6.0).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.arange(6)[::-2],
        np.array(5.0),
        np.zeros((0, 3), dtype=np.float32),
        np.array([True, False]),
        np.array([1, 2], dtype=np.int8),
        torch.arange(6.0).reshape(2, 3),
        torch.tensor(3, dtype=torch.bfloat16),
        {"nested": [np.eye(2), {"deeper": np.arange(3)}]},
    ],
    ids=repr,
)
def test_round_trip(value: Any) -> None:
    plain = to_plain(value)
    assert is_plain(plain)
    assert same(from_plain(plain), value)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_round_trip_of_a_sparse_matrix(form: str, dtype: type) -> None:
    matrix = MATRIX.astype(dtype).asformat(form)
    plain = to_plain({"item_sim": matrix})
    assert is_plain(plain)
    back = from_plain(plain)["item_sim"]
    assert sparse.issparse(back) and back.format == "csr"
    assert (back.shape, back.dtype) == ((4, 6), np.dtype(dtype))
    assert (back.toarray() == matrix.toarray()).all()


@pytest.mark.parametrize("coalesced", [True, False])
def test_round_trip_of_a_sparse_tensor(coalesced: bool, tmp_path: Path) -> None:
    tensor = torch.sparse_coo_tensor([[0, 0, 1], [2, 2, 0]], [1.0, 2.0, 3.0], (2, 3), check_invariants=True)
    tensor = tensor.coalesce() if coalesced else tensor
    save(tmp_path / "a.pth", {"graph": tensor})
    back = from_plain(load(tmp_path / "a.pth")["graph"])
    assert back.layout == torch.sparse_coo and back.is_coalesced() == coalesced
    assert torch.equal(back.to_dense(), tensor.to_dense())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(5), 5),
        (np.uint8(200), 200),
        (np.bool_(True), True),
        (np.str_("token"), "token"),
        ((1, (2, 3)), [1, [2, 3]]),
        ({np.int64(1): np.float32(2)}, {1: 2.0}),
    ],
)
def test_scalars_of_numpy_and_tuples_become_pythons(value: Any, expected: Any) -> None:
    assert same(to_plain(value), expected)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        b"bytes",
        1j,
        object(),
        torch.nn.Linear(1, 1),
        print,
        Path("x"),
        np.datetime64("2020-01-01"),
        np.complex128(1j),
        np.array(["text"]),
        np.array([object()]),
        {"deep": [{"down": {1}}]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        to_plain(value)


TEXT = st.text(max_size=8)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.none())
ARRAYS = arrays.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.int32, np.bool_]), arrays.array_shapes(min_dims=0, min_side=0)
)
KEYS = st.one_of(TEXT, st.integers(-100, 100))
NESTED = st.recursive(
    st.one_of(TEXT, NUMBERS, ARRAYS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(NESTED)
def test_round_trip_of_anything_nested(value: Any) -> None:
    plain = to_plain(value)
    assert is_plain(plain)
    assert same(from_plain(plain), value)


@settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=NESTED)
def test_round_trip_through_a_file(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save(path, {"value": value})
    assert same(from_plain(load(path)["value"]), value)


# save

STATE = {
    "weights": torch.arange(200.0).reshape(10, 20),
    "matrix": MATRIX,
    "history": [{"loss": 0.5, "epoch": 0}],
    "tokens": ["[PAD]", "nan", "00123"],
}


def test_file_opens_with_weights_only(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", STATE)
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(state) == ["format", *STATE] and state["format"] == FORMAT
    assert torch.equal(state["weights"], STATE["weights"]) and state["tokens"] == STATE["tokens"]
    loaded = load(str(tmp_path / "a.pth"))
    assert list(loaded) == list(state) and loaded["history"] == STATE["history"]
    assert (from_plain(loaded["matrix"]) != MATRIX).nnz == 0


def test_state_of_an_optimizer_survives(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.25, weight_decay=1e-4)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save(tmp_path / "a.pth", {"optimizer": optimizer.state_dict(), "state_dict": layer.state_dict()})
    state = load(tmp_path / "a.pth")
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(state["state_dict"])
    assert torch.equal(other.weight, layer.weight)
    fresh = torch.optim.Adam(other.parameters())
    fresh.load_state_dict(state["optimizer"])
    assert fresh.param_groups[0]["lr"] == 0.25
    assert torch.equal(fresh.state[other.weight]["exp_avg_sq"], optimizer.state[layer.weight]["exp_avg_sq"])


def half_written(state: Any, file: Any, *_: Any) -> None:
    file.write(b"half of it")
    raise OSError(28, "No space left on device")


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


FAULTS = {
    "something unfit": (None, None, TypeError),
    "full disk": ("torch.save", half_written, UserError),
    "interruption while writing": ("torch.save", interrupted, KeyboardInterrupt),
    "interruption while flushing": ("os.fsync", interrupted, KeyboardInterrupt),
    "interruption before the last step": ("os.replace", interrupted, KeyboardInterrupt),
}


@pytest.mark.parametrize("before", [True, False], ids=["over an older file", "new file"])
@pytest.mark.parametrize("fault", FAULTS)
def test_failed_save_leaves_what_was_there(
    fault: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pth"
    if before:
        save(path, STATE)
    content = path.read_bytes() if before else None
    target, broken, error = FAULTS[fault]
    if target is not None:
        monkeypatch.setattr(target, broken)
    with pytest.raises(error):
        save(path, {"new": 1, **({"unfit": {1}} if target is None else {})})
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == (["a.pth"] if before else [])
    assert not before or path.read_bytes() == content


def test_file_is_complete_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real = os.fsync, os.replace

    def fsync(handle: int) -> None:
        steps.append("fsync")
        real[0](handle)

    def replace(source: Any, target: Any) -> None:
        steps.append("replace")
        assert Path(source).parent == Path(target).parent, "a rename is whole within one file system only"
        assert load(source)["new"] == 1
        real[1](source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save(tmp_path / "a.pth", {"new": 1})
    assert steps == ["fsync", "replace"]


def test_others_may_read_a_checkpoint_like_any_file(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", STATE)
    (tmp_path / "plain").write_text("")
    mode = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.pth", "plain")}
    assert mode["a.pth"] == mode["plain"]


def test_save_overwrites(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", {"n": 1})
    save(tmp_path / "a.pth", {"n": 2})
    assert load(tmp_path / "a.pth") == {"format": FORMAT, "n": 2}
    assert len(list(tmp_path.iterdir())) == 1


# load


def refusal(path: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert f"'{path}'" in message and "\n" not in message
    return message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "a.pth")
    assert "does not exist" in refusal(tmp_path / "no folder" / "a.pth")
    assert "is a folder: name the .pth file in it" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "cannot be read (Permission denied)"),
        (OSError(5, "Input/output error"), "cannot be read (Input/output error)"),
        (OSError(22, "Invalid argument"), "is damaged, cut short"),  # a seek to before the beginning
    ],
)
def test_error_of_the_operating_system(
    error: OSError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    save(tmp_path / "a.pth", STATE)
    monkeypatch.setattr(torch, "load", refuse)
    assert reason in refusal(tmp_path / "a.pth")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.pth"
    save(path, STATE)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.9999])
def test_truncated_file(share: float, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content[: int(share * len(content))])
    message = refusal(path)
    assert "damaged, cut short or no checkpoint" in message and "another copy" in message


def test_truncated_file_of_every_length(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for length in [*range(0, 64), *range(64, len(content), 41), *range(len(content) - 64, len(content))]:
        path.write_bytes(content[:length])
        refusal(path)


def test_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    source = random.Random(2020)
    for start in (b"", b"\x80\x02", b"PK\x03\x04"):  # nothing, a pickle's start, a zip archive's
        for length in (1, 2, 3, 5, 10, 30, 100, 1000) * 15:
            path.write_bytes(start + source.randbytes(length))
            refusal(path)


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("", "epochs: 5\n", "(lp0\n.", "# notes\n" * 500):
        path.write_text(text)
        assert "checkpoint" in refusal(path)


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


class Shell(Payload):
    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}'",)


class Evaluated(Payload):
    def __reduce__(self) -> tuple:
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("payload", [Payload, Shell, Evaluated])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("how", ["pickle", "torch", "torch, old format"])
def test_malicious_pickle_is_not_run(payload: type, protocol: int, how: str, tmp_path: Path) -> None:
    path, made = tmp_path / "a.pth", tmp_path / "made"
    state = {"format": FORMAT, "weights": torch.ones(2) if how != "pickle" else 1, "config": payload(made)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(state, protocol))
    else:
        new = how == "torch"
        torch.save(state, path, pickle_protocol=protocol or 2, _use_new_zipfile_serialization=new)
    message = refusal(path)
    assert not made.exists()
    assert "checkpoint" in message
    # The payload is a live one: opened carelessly, the file does what is feared.
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert made.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_model_saved_as_an_object(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(torch.nn.Linear(2, 2), path, pickle_protocol=protocol)
    message = refusal(path)
    assert "holds more than tensors and plain values" in message and "was not opened" in message


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"state_dict": {}, "format": "recbole_diffurec checkpoint 0"}, "'recbole_diffurec checkpoint 0'"),
        ({"state_dict": {}}, "None"),
        ({"format": None}, "None"),
        ([1, 2], "'list'"),
        (torch.ones(2), "'Tensor'"),
    ],
)
def test_other_format(state: Any, found: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(state, path)
    message = refusal(path)
    assert "is no checkpoint of this version" in message and f"({found} instead of '{FORMAT}')" in message


def test_refusal_warns_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    # torch warns of pickle protocols other than 2, such as RecBole's 4.
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {}}, path, pickle_protocol=4)
    refusal(path)
    assert list(recwarn) == []


def test_load_puts_tensors_on_the_device_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", STATE)
    assert load(tmp_path / "a.pth", "meta")["weights"].device == torch.device("meta")
    assert load(tmp_path / "a.pth")["weights"].device == torch.device("cpu")
