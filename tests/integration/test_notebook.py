"""The notebook of the whole way works, as it is committed: without outputs, and with nothing but the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra test")
NOTEBOOK = ROOT / "examples" / "whole_way.ipynb"


def text_of(cell) -> tuple[str, str]:
    """What a cell has printed and returned, and what it has said on standard error."""
    said = "".join(output.text for output in cell.outputs if output.get("name") == "stderr")
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(shown), said


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


def test_it_runs(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra test")
    pytest.importorskip("ipykernel", reason="notebooks need the extra test")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(workdir)}}).execute()
    names = ("table", "prepare", "run", "recommend", "similar", "audit")
    cells = dict(zip(names, (cell for cell in notebook.cells if cell.cell_type == "code")))
    shown = {name: text_of(cell) for name, cell in cells.items()}
    # Lines are seen, and nothing else.
    assert "epoch 12/12: loss" in shown["run"][1] and shown["run"][1].count("epoch ") == 12
    assert not any("Warning" in said or "\r" in said or "batch" in said for _, said in shown.values())
    assert "5-core        300 users, 40 items" in shown["prepare"][0] and not shown["prepare"][1]
    # What was learnt: the next thing of a series, with its title and the reason.
    assert "Green tea" in shown["recommend"][0] and "['Strainer'" not in shown["recommend"][0]
    assert "Ink" in shown["similar"][0]
    assert "95 % interval" in shown["audit"][0] and "as trained (8 steps)" in shown["audit"][0]
    assert (workdir / "audit" / "audit.html").is_file()
