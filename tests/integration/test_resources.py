"""When memory or disk run out: nothing is lost, and one sentence says what to do."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, flags

from recbole_diffurec import DiffuRecSys, UserError, cli, evaluate, run

SMALL = {**TINY, "user_inter_num_interval": "[5,30]", "sampling_steps": 1}


def fails_above(monkeypatch, method: str, rows: int, error: Exception) -> None:
    """Let ``method`` of the model run out of memory for more than ``rows`` rows."""
    original = getattr(DiffuRecSys, method)

    def limited(self, interaction):
        if len(interaction) > rows:
            raise error
        return original(self, interaction)

    monkeypatch.setattr(DiffuRecSys, method, limited)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_evaluation_goes_on_with_fewer_users(error, workdir, monkeypatch, caplog):
    expected = run("DiffuRecSys", **SMALL)
    fails_above(monkeypatch, "full_sort_predict", 60, error)
    caplog.set_level("INFO", "recbole_diffurec")
    result = run("DiffuRecSys", **SMALL)
    assert result["test_result"] == pytest.approx(expected["test_result"], abs=1e-6)
    assert result["best_valid_result"] == pytest.approx(expected["best_valid_result"], abs=1e-6)
    assert "going on with 32 users at a time (--eval_batch_size=32 avoids the detour)" in caplog.text
    assert evaluate(result["checkpoint"])["test_result"] == pytest.approx(expected["test_result"], abs=1e-6)


def test_not_even_one_user_fits(workdir, monkeypatch):
    fails_above(monkeypatch, "full_sort_predict", 0, MemoryError())
    with pytest.raises(UserError, match="ran out of memory with a single user at a time"):
        run("DiffuRecSys", **SMALL)


def test_training_says_what_to_lower(workdir, monkeypatch, capsys):
    fails_above(monkeypatch, "calculate_loss", 400, torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert cli.main([*flags(SMALL), "--train_batch_size=1000"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "training ran out of memory at batch 1 of epoch 1: lower train_batch_size (now 1000)" in error
    assert cli.main([*flags(SMALL), "--train_batch_size=400"]) == 0


def test_other_errors_of_the_runtime_are_not_taken_for_it(workdir, monkeypatch):
    fails_above(monkeypatch, "full_sort_predict", 0, RuntimeError("expected scalar type Float but found Half"))
    with pytest.raises(UserError, match="expected scalar type Float but found Half"):
        run("DiffuRecSys", **SMALL)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own that holds 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(small_disk, workdir):
    earlier = small_disk / "saved" / "earlier.pth"
    earlier.parent.mkdir()
    earlier.write_bytes(b"x" * 200_000)
    command = [
        sys.executable,
        "-m",
        "recbole_diffurec",
        *flags({**SMALL, "hidden_size": 32, "checkpoint_dir": earlier.parent}),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"cannot be written ({os.strerror(errno.ENOSPC)}): free some space" in done.stderr.splitlines()[-1]
    assert earlier.read_bytes() == b"x" * 200_000
    assert [path.name for path in earlier.parent.iterdir()] == ["earlier.pth"], "nothing half-written stays"


def test_a_data_file_that_vanishes(workdir, capsys):
    folder = Path("data/mine")
    folder.mkdir(parents=True)
    arguments = flags({**SMALL, "data_path": "data", "dataset": "mine", "topk": [5], "valid_metric": "NDCG@5"})
    rows = [f"u{u}\ti{(u + i) % 12}\t{i}" for u in range(12) for i in range(8)]
    (folder / "mine.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
    assert cli.main(arguments) == 0
    (checkpoint,) = Path("saved").glob("*.pth")
    (folder / "mine.inter").unlink()
    assert cli.main(["evaluate", str(checkpoint)]) == 2
    assert str(folder / "mine.inter") in capsys.readouterr().err
