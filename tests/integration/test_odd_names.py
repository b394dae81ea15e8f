"""Folders, files and data sets whose names have spaces and accents, and as few items as a list has places."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from conftest import TINY

from recbole_diffurec import compare, evaluate, export, recommend, run
from recbole_diffurec.errors import Interrupted
from recbole_diffurec.runtime import files
from recbole_diffurec.training.trainer import PluginTrainer

NAME = "données d'été 日本"
SMALL = {**TINY, "topk": [5], "valid_metric": "NDCG@5", "epochs": 2}


@pytest.fixture
def odd(workdir: Path) -> dict[str, object]:
    """A data set of six items, and where it is."""
    draw = random.Random(1)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u {user}\ti{draw.randint(1, 6)} é\t{time}" for user in range(30) for time in range(8)]
    path = Path("les données", NAME, f"{NAME}.inter")
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {**SMALL, "data_path": "les données"}


def test_from_training_to_export(odd: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**odd, "checkpoint_dir": "mes modèles"}
    with monkeypatch.context() as patch:
        # Stopped after its first epoch, with its state written.
        def stop(self: PluginTrainer, *_: object, **__: object) -> None:
            raise Interrupted(2, self.state_file)

        patch.setattr(PluginTrainer, "_valid_epoch", stop)
        with pytest.raises(Interrupted):
            run("DiffuRec", NAME, **options)
    result = run("DiffuRec", NAME, resume=True, result_file="le résultat.json", **options)
    assert len(result["history"]) == 2 and not list(Path("mes modèles").glob("*.state"))
    model = Path("mon modèle é.pth")
    Path(result["checkpoint"]).rename(model)
    assert evaluate(model, result_file="encore é.json")["test_result"] == result["test_result"]
    counts = recommend(model, "listes é.csv", k=5)
    assert counts["users"] == 30 and Path("listes é.csv").read_text(encoding="utf-8").count(" é,") == 150
    assert Path(export(model, format="safetensors")["output"]) == Path("mon modèle é.safetensors")


def test_a_comparison(odd: dict[str, object]) -> None:
    """Its own analyses have lists of ten, and find six items."""
    found = compare(["DiffuRec"], [NAME], output_dir="la comparaison", **odd)
    assert found is not None and not found.failures
    assert files.holds_checkpoint(found.results.runs["checkpoint"][0])
    assert list(Path("la comparaison", "figures").glob("*.svg"))
