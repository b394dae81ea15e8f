"""The command: on trained models, on a plugin's, on what it refuses; and the twin."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from conftest import flags

from recbole_diffurec import UserError, audit, cli, evaluate
from recbole_diffurec.experiments import audit as module
from recbole_diffurec.training.evaluate import open_members
from recbole_diffurec.training.trainer import PluginTrainer


def audited(arguments: list[str]) -> int:
    return cli.main(["audit", *arguments, *flags({"gpu_id": "", "show_progress": False})])


def test_the_command(trained, workdir, capsys):
    arguments = [str(trained["DiffuRec"]), "--users=60", "--samples=3", "--sampling_steps=2", "--result_file=r/a.json"]
    assert audited(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads((workdir / "r" / "a.json").read_text())
    assert result["verdict"]["sentence"] in out and "as trained (2 steps)" in out and "sample_seed 2020" in err
    assert result["users"] == 60 and {"hit@5", "ndcg@20"} <= result["lines"][0]["metrics"].keys()
    assert {line["name"] for line in result["lines"]} >= {
        "factor_0",
        "mc_dropout",
        "ddim_32",
        "mean_of_samples",
        "twin",
    }
    for name in ("audit.html", "audit.json", "audit.png", "audit.svg"):
        assert (workdir / "audit" / name).stat().st_size > 500
    page = (workdir / "audit" / "audit.html").read_text()
    assert result["verdict"]["sentence"] in page and page.count("<table") == page.count("</table>") >= 2
    assert re.findall(r"(?:src|href)=\"(.{14})", page) == ["data:image/svg"]
    assert audited([*arguments[:-1], "--result_file=b.json"]) == 0
    again = json.loads((workdir / "b.json").read_text())
    for found in (result, again):
        del found["log"]
        for line in found["lines"]:
            line.pop("ms_per_user", None)
    assert again == result


def test_the_whole_test_set_gives_the_figures_of_the_run(trained, workdir, capsys):
    files = [trained[name] for name in ("DiffuRecSys", "DiffuRec", "SASRec")]
    found = audit(*files, users=10**6, samples=2, gpu_id="", show_progress=False)
    expected = evaluate(trained["DiffuRecSys"])["test_result"]
    first = found.result["lines"][0]
    assert first["metrics"] == expected and first["ndcg"] == pytest.approx(expected["ndcg@10"], abs=1e-6)
    assert found.result["users"] == found.result["test_users"] == found.result["n_users"]
    ensemble = next(line for line in found.result["lines"] if line["name"] == "ensemble")
    assert ensemble["label"] == "3 checkpoints as one, 1 step each" and ensemble["overlap"] < 1
    assert found.lines.loc[ensemble["label"], "NDCG@10"] == ensemble["ndcg"] and found.result["checkpoints"] == list(
        map(str, files)
    )


def test_the_dropout_of_an_audits_passes_may_be_given_which_training_alone_reads_elsewhere(trained, workdir):
    few = {"users": 60, "samples": 2, "gpu_id": "", "show_progress": False}
    probabilities = [audit(trained["DiffuRec"], hidden_dropout_prob=p, **few).result["lines"] for p in (0.1, 0.6)]
    first, second = (next(line for line in lines if line["name"] == "mc_dropout") for lines in probabilities)
    assert first["metrics"] != second["metrics"]
    with pytest.raises(UserError, match="hidden_dropout_prob would have no effect, because training alone reads it"):
        evaluate(trained["DiffuRec"], hidden_dropout_prob=0.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{SASRec}"], "is of SASRec, which is no diffusion model"),
        (["{DiffuRec}", "--users=0"], "users must be an integer of at least 1, got 0"),
        (["{DiffuRec}", "--samples=1"], "samples must be an integer of at least 2, got 1"),
        (["{DiffuRec}", "--users=many"], "--users"),
        (["nowhere.pth"], "does not exist"),
        (["{DiffuRec}", "--metrics=[RMSE]"], ""),
        (["{DiffuRec}", "--eval_args={{split: {{RS: [1, 0, 0]}}, group_by: user, order: TO, mode: full}}"], ""),
        (["{DiffuRec}", "--config_files=a.yaml"], "takes no --config_files"),
        (["{DiffuRec}", "--output_dir=a", "--result_file=a/../a/audit.html"], "is a file that output_dir gets"),
        (["{DiffuRec}", "--result_file=audit/twin.json"], "is a file that output_dir gets"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_a_sentence(arguments, message, trained, workdir, capsys):
    assert audited([argument.format(**trained) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith("recbole-diffurec: ")


def test_an_interrupted_twin_is_resumed(trained, workdir, monkeypatch, capsys):
    arguments = [str(trained["DiffuRec"]), "--users=60", "--samples=2", "--sampling_steps=2", "--train_twin"]
    assert audited([*arguments, "--output_dir=whole"]) == 0
    between = PluginTrainer.between

    def dying(self, index, batches):
        between(self, index, batches)
        if batches.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PluginTrainer, "between", dying)
        assert audited([*arguments, "--checkpoint_minutes=0"]) == 130
    assert not (workdir / "audit" / "twin.json").exists()
    capsys.readouterr()
    assert audited(arguments) == 0
    assert "resuming after 2 batches of epoch 1" in capsys.readouterr().err
    found = [json.loads((workdir / name / "audit.json").read_text()) for name in ("whole", "audit")]
    whole, resumed = (next(line for line in result["lines"] if line["name"] == "twin") for result in found)
    assert {**resumed, "ms_per_user": 0} == {**whole, "ms_per_user": 0}


def test_the_twin_is_trained_once(trained, workdir, capsys):
    arguments = [str(trained["DiffuRec"]), "--users=60", "--samples=2", "--sampling_steps=2", "--train_twin"]
    assert audited(arguments) == 0
    first = json.loads((workdir / "audit" / "audit.json").read_text())
    assert first["verdict"]["line"] == "twin"
    told = capsys.readouterr().err
    assert "training the twin: noised_target=False" in told and "epoch 1/1" in told
    assert audited([*arguments, "--mask_seen=True"]) == 0
    assert "the twin is there" in capsys.readouterr().err
    second = json.loads((workdir / "audit" / "audit.json").read_text())
    assert second["twin"] == first["twin"] and second["protocol"]["mask_seen"]
    assert audited([first["twin"], "--users=60", "--samples=2", "--train_twin", "--output_dir=of_twin"]) == 0
    lines = {line["name"]: line for line in json.loads((workdir / "of_twin" / "audit.json").read_text())["lines"]}
    assert "trained without" in lines["twin"]["not_applicable"] == lines["factor_0"]["not_applicable"]


def test_a_twin_is_looked_for_in_its_own_folder_alone(trained, workdir, monkeypatch):
    own, kept = workdir / "audit" / "twin" / "own.pth", workdir / "audit" / "twin.json"
    own.parent.mkdir(parents=True)
    for path in (own, workdir / "other.pth"):
        path.touch()
    monkeypatch.setattr(module, "train_or_resume", lambda config: SimpleNamespace(result={"checkpoint": str(own)}))
    (member,) = open_members([trained["DiffuRec"]], {})
    assert module.twin_checkpoint(member, {}, kept.parent) == own
    told = json.loads(kept.read_text())
    for elsewhere in ("../../other.pth", str(workdir / "other.pth"), "a\0b", "", 3):
        kept.write_text(json.dumps({**told, "checkpoint": elsewhere}))
        assert module.twin_checkpoint(member, {}, kept.parent) == own, "trained, since none is there"
    kept.write_text("[" * 100_000)
    assert module.twin_checkpoint(member, {}, kept.parent) == own
