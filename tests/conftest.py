"""Shared by all tests: where data for checks lies, small configurations, and models trained with one of them."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # every core has a worker; PyTorch reads it when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import recbole_diffurec  # mends RecBole before a test imports it
from recbole_diffurec.host.config import RunConfig, known_parameters


def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are cores: tests of commands and services wait for processes much of their time."""
    return 3 * (os.cpu_count() or 1) // 2 or 1


ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

# A run of a second: a small network, and users with few interactions only.
TINY: dict[str, Any] = {
    "epochs": 1, "hidden_size": 16, "n_layers": 1, "n_heads": 2, "MAX_ITEM_LIST_LENGTH": 8, "show_progress": False,
    "user_inter_num_interval": "[5,50]", "gpu_id": "",
}  # fmt: skip


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without the last ones it looks up hosts of its maker at every start.
BROWSER_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def flags(parameters: Mapping[str, Any]) -> list[str]:
    """Parameters as the command line takes them."""
    return [f"--{name}={value}" for name, value in parameters.items()]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets that are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data sets are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that logs and checkpoints go nowhere else."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by the names of their models, for tests that read them: DiffuRec has all that a model may have."""
    wanted: dict[str, dict[str, Any]] = {
        "DiffuRec": {"n_layers": 2, "use_position": True, "repeat_bias": True},
        "DiffuRecSys": {"n_layers": 2, "sampling_steps": 2},
        "CL4SRec": {},
        "SASRec": {"inner_size": 32},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        results = {name: recbole_diffurec.run(name, **{**TINY, **more}) for name, more in wanted.items()}
    return {name: Path(result["checkpoint"]) for name, result in results.items()}


@pytest.fixture(scope="session")
def served_checkpoint(trained: dict[str, Path]) -> Path:
    """The checkpoint of the model that ``service`` serves."""
    return trained["DiffuRecSys"]


@pytest.fixture(scope="session")
def masked_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that draws lists of up to three items together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("masked"))
        return Path(recbole_diffurec.run("MaskedDiffRec", **{**TINY, "n_slots": 3})["checkpoint"])


@pytest.fixture(scope="session")
def service(served_checkpoint: Path) -> Iterator[str]:
    """The address of a running service, whose end is checked as well."""
    yield from served(served_checkpoint)


@pytest.fixture(scope="session")
def masked_service(masked_checkpoint: Path) -> Iterator[str]:
    """As ``service``, of a model that draws lists."""
    yield from served(masked_checkpoint)


def served(checkpoint: Path) -> Iterator[str]:
    """The address of a service of a checkpoint, and then its end."""
    command = [sys.executable, "-m", "recbole_diffurec", "serve", str(checkpoint), "--port=0", "--max_batch=8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line.startswith("serving"), process.stderr.read()
    yield line.split()[1].rstrip("/")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    malformed = "WARNING:  Invalid HTTP request received.\n"  # what uvicorn says of some requests of the tests
    assert (process.returncode, errors.replace(malformed, "")) == (0, "")


@pytest.fixture(scope="module")  # Playwright leaves its event loop running meanwhile
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="tests of pages need playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"tests of pages need a browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


class FakeDataset:
    """As much of a RecBole data set as a model's constructor asks for."""

    def __init__(self, n_items: int):
        self.n_items = n_items

    def num(self, field: str) -> int:
        return self.n_items


def make_model(name: str = "DiffuRecSys", n_items: int = 31, **parameters: Any):
    """A small model in evaluation mode, in float64."""
    small = {"hidden_size": 16, "n_layers": 2, "n_heads": 4, "MAX_ITEM_LIST_LENGTH": 12, "gpu_id": ""}
    known = known_parameters(name)
    config = RunConfig(name, "test", {**{key: value for key, value in small.items() if key in known}, **parameters})
    return config.model_class(config, FakeDataset(n_items)).double().eval()


def make_batch(lengths: list[int], n_items: int = 31, padded_length: int = 12, seed: int = 0):
    """A RecBole batch of random histories of the given lengths, with random targets."""
    from recbole.data.interaction import Interaction

    generator = torch.Generator().manual_seed(seed)
    item_seq = torch.zeros(len(lengths), padded_length, dtype=torch.long)
    for row, length in enumerate(lengths):
        item_seq[row, :length] = torch.randint(1, n_items, (length,), generator=generator)
    target = torch.randint(1, n_items, (len(lengths),), generator=generator)
    return Interaction({"item_id_list": item_seq, "item_length": torch.tensor(lengths), "item_id": target})
