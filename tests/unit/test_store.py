"""Kept runs of a comparison: what is damaged is not taken for a finished run, and is told."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_diffurec.experiments.grid import Entry, Job
from recbole_diffurec.experiments.store import RunStore

JOB = Job(Entry("DiffuRec", "DiffuRec"), "données 日本", 2020, "0123456789ab", {})
RESULT = {
    "label": "DiffuRec", "device": "cpu", "checkpoint": "/a.pth", "n_parameters": 10, "seconds": 1.5, "eval_seconds": 1,
    "best_epoch": 0, "best_valid_result": {"ndcg@10": 0.5}, "test_result": {"ndcg@10": 0.25},
    "lists": {"10": {"coverage": 1.0}}, "history": [{"epoch": 0, "train_seconds": 1.0, "train_loss": float("nan")}],
    "config": {"topk": [10]}, "versions": {"torch": "2"},
}  # fmt: skip
ARRAYS = {
    "user": np.array(["a", "b"]),
    "rank": np.array([0, 3], dtype=np.int32),
    "head": np.array([True, False]),
    "length": np.array([4, 5], dtype=np.int32),
}


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Path]:
    RunStore(tmp_path).write(JOB, RESULT, ARRAYS)
    return tmp_path / f"{JOB.name}.json", tmp_path / f"{JOB.name}.npz"


def test_what_is_kept_comes_back(kept: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    store = RunStore(kept[0].parent)
    assert JOB in store and not caplog.records
    found = store.result(JOB)
    assert {name: found[name] for name in RESULT if name != "history"} == {
        name: value for name, value in RESULT.items() if name != "history"
    }
    assert all((store.arrays(JOB)[name] == values).all() for name, values in ARRAYS.items())


def test_what_never_was_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert JOB not in RunStore(tmp_path) and not caplog.records


def edited(change: Callable[[dict[str, Any]], Any], digest: bool = False) -> Callable[[bytes], bytes]:
    """A damage of the JSON, with its digests (which notice it) or without them, as earlier versions wrote it."""

    def damage(content: bytes) -> bytes:
        result = json.loads(content)
        for name in () if digest else ("digest", "digest_of_arrays"):
            del result[name]
        changed = change(result)
        return json.dumps(result if changed is None else changed).encode()

    return damage


JSON: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-20],
    "binary": lambda content: bytes(range(256)),
    "deep": lambda content: b"[" * 100_000,
    "long number": lambda content: content.replace(b"1.5", b"1" * 5000),
    "list": edited(lambda result: [result]),
    "null": edited(lambda result: "null"),
    "text for a number": edited(lambda result: result.update(seconds="fast")),
    "truth for a number": edited(lambda result: result.update(best_epoch=True)),
    "number for a table": edited(lambda result: result.update(test_result=3)),
    "text in a table": edited(lambda result: result["test_result"].update({"ndcg@10": "high"})),
    "no metrics": edited(lambda result: result.update(test_result={}, best_valid_result={})),
    "another metric": edited(lambda result: result.update(test_result={"hit@10": 0.5})),
    "no epochs": edited(lambda result: result.update(history=[])),
    "no time": edited(lambda result: result.update(eval_seconds=0)),
    "another run": edited(lambda result: result.update(key="0" * 12)),
    "NaN": edited(lambda result: result["test_result"].update({"ndcg@10": float("nan")}), digest=True),
    "a better figure": edited(lambda result: result["test_result"].update({"ndcg@10": 0.9}), digest=True),
    **{f"no {name}": edited(lambda result, name=name: result.pop(name) and None) for name in [*RESULT, "key"]},
}


def assert_told(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "recbole_diffurec")
    store = RunStore(folder)
    assert JOB not in store and JOB not in store
    (record,) = caplog.records
    message = record.getMessage()
    assert name in message and "is damaged (" in message and "is run again" in message and "\n" not in message
    store.write(JOB, RESULT, ARRAYS)
    assert JOB in store and JOB in RunStore(folder)


@pytest.mark.parametrize("damage", JSON)
def test_damage_of_the_result(damage: str, kept: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    kept[0].write_bytes(JSON[damage](kept[0].read_bytes()))
    assert_told(kept[0].parent, kept[0].name, caplog)


def test_a_folder_in_place_of_the_result(kept: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    kept[0].unlink()
    kept[0].mkdir()
    caplog.set_level(logging.WARNING, "recbole_diffurec")
    assert JOB not in RunStore(kept[0].parent) and "Is a directory" in caplog.text


def of_arrays(**changed: Any) -> Callable[[bytes], bytes]:
    import io

    def damage(content: bytes) -> bytes:
        file = io.BytesIO()
        arrays = {**ARRAYS, **changed}
        np.savez(file, **{name: values for name, values in arrays.items() if values is not None})
        return file.getvalue()

    return damage


def inflated(content: bytes) -> bytes:
    import io

    file = io.BytesIO()
    names = ("user", "rank", "head", "length")
    np.savez_compressed(file, **{name: np.zeros(10**6, ARRAYS[name].dtype) for name in names})
    return file.getvalue()


NPZ: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-30],
    "binary": lambda content: bytes(range(256)),
    "flipped": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "no ranks": of_arrays(rank=None),
    "text for ranks": of_arrays(rank=np.array(["1", "2"])),
    "objects": of_arrays(user=np.array([{}, "b"], dtype=object)),
    "another length": of_arrays(length=np.array([1], dtype=np.int32)),
    "no users": of_arrays(**{name: values[:0] for name, values in ARRAYS.items()}),
    "far larger than the file": inflated,
    "some of a diffusion model": of_arrays(steps=np.array([1, 2])),
}


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("damage", NPZ)
def test_damage_of_the_arrays(
    damage: str, digest: bool, kept: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    if not digest:
        kept[0].write_bytes(edited(lambda result: None)(kept[0].read_bytes()))
    kept[1].write_bytes(NPZ[damage](kept[1].read_bytes()))
    assert_told(kept[1].parent, kept[1].name, caplog)


def test_names_of_any_length_fit(tmp_path: Path) -> None:
    job = Job(Entry("x" * 100, "DiffuRec"), "é" * 100, 2020, "0123456789ab", {})
    RunStore(tmp_path).write(job, RESULT, ARRAYS)
    assert job in RunStore(tmp_path)


@pytest.mark.parametrize("place", [0, 1])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    place: int, kept: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    kept[place].unlink()
    os.mkfifo(kept[place])
    caplog.set_level(logging.WARNING, "recbole_diffurec")
    assert JOB not in RunStore(kept[0].parent) and "it is no regular file" in caplog.text
