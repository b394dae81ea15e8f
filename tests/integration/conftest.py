"""A small trained model and a running service of it, for all tests of the service."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_diffurec import run

TINY = {
    "epochs": 1, "hidden_size": 16, "n_layers": 1, "n_heads": 2, "MAX_ITEM_LIST_LENGTH": 8, "show_progress": False,
    "user_inter_num_interval": "[5,50]", "gpu_id": "", "sampling_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="session")
def served_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of DiffuRecSys on ml-100k after one epoch."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return Path(run("DiffuRecSys", **TINY)["checkpoint"]).resolve()


@pytest.fixture(scope="session")
def service(served_checkpoint: Path):
    """The address of a running service of it, whose end is checked as well."""
    command = [sys.executable, "-m", "recbole_diffurec", "serve", str(served_checkpoint), "--port=0", "--max_batch=8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("serving"), process.stderr.read()
    yield line.split()[1].rstrip("/")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.replace(MALFORMED, "")) == (0, "")


MALFORMED = "WARNING:  Invalid HTTP request received.\n"  # what uvicorn says of some requests of the tests
