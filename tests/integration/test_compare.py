"""A comparison from the command to the report, killed on the way."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY, flags

from recbole_diffurec import UserError, cli, compare, run
from recbole_diffurec.config import layers
from recbole_diffurec.experiments import compare as compare_module
from recbole_diffurec.experiments import grid, measures, readable

SMALL = {**TINY, "epochs": 2}
ARGUMENTS = flags(SMALL)
SHORT = ["--topk=[5]", "--valid_metric=NDCG@5"]
MODELS = ["DiffuRecSys@sampling_steps=2", "SASRec@inner_size=32"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Two models, two seeds, the command killed after the first run and given again."""
    folder = tmp_path_factory.mktemp("comparison")
    command = [sys.executable, str(ROOT / "run_recbole_diffurec.py"), "compare", f"--models={','.join(MODELS)}"]
    command += ["--seeds=2", "--output_dir=out", *ARGUMENTS]
    first = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(folder.glob("out/runs/*.json")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("out/runs/*.json")}
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return folder / "out", before, again


def test_a_killed_comparison_goes_on_where_it_was(comparison):
    folder, before, again = comparison
    assert again.returncode == 0, again.stderr
    assert 1 <= len(before) < 4 and f"4 runs, {len(before)} of them done already" in again.stderr
    assert len(list(folder.glob("runs/*.json"))) == len(list(folder.glob("runs/*.npz"))) == 4
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert not list(folder.rglob("*.part"))
    assert "left" in again.stderr and "report.html" in again.stdout


def test_the_runs_are_those_of_the_run_command(comparison, workdir):
    folder, _, _ = comparison
    runs = pd.read_csv(folder / "runs.csv")
    assert list(runs["model"]) == MODELS * 2 and list(runs["seed"]) == [2020, 2020, 2021, 2021]
    alone = run("DiffuRecSys", **{**SMALL, "sampling_steps": 2, "seed": 2021})
    row = runs[(runs["model"] == MODELS[0]) & (runs["seed"] == 2021)].iloc[0]
    assert {f"test_{key}": row[f"test_{key}"] for key in alone["test_result"]} == {
        f"test_{key}": value for key, value in alone["test_result"].items()
    }
    assert row["valid_ndcg@10"] == alone["best_valid_result"]["ndcg@10"]


def test_ranks_of_users_give_recboles_metrics(comparison):
    folder, _, _ = comparison
    for path in folder.glob("runs/*.json"):
        result = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            for k in (5, 10, 20):
                for metric, values in measures.gains(arrays["rank"], k).items():
                    assert values.mean() == pytest.approx(result["test_result"][f"{metric}@{k}"], abs=1e-6)
            assert len(set(arrays["user"])) == len(arrays["user"]) == result["n_users"]
            assert ("spread" in arrays) == result["label"].startswith("DiffuRecSys")


def test_tables(comparison):
    folder, _, _ = comparison
    runs, summary = pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "summary.csv").set_index("model")
    for model, group in runs.groupby("model"):
        assert summary.loc[model, "test_hit@10_mean"] == pytest.approx(group["test_hit@10"].mean())
        assert summary.loc[model, "test_hit@10_std"] == pytest.approx(group["test_hit@10"].std())
        assert (group["coverage@10"] > 0).all() and (group["users_per_second"] > 0).all()
    text = (folder / "summary.md").read_text()
    best = max(MODELS, key=lambda model: summary.loc[model, "test_ndcg@20_mean"])
    assert f"**{summary.loc[best, 'test_ndcg@20_mean']:.4f} ±" in text
    assert (
        r"\textbf{" in (folder / "summary.tex").read_text()
        and r"sampling\_steps" in (folder / "summary.tex").read_text()
    )
    significance = pd.read_csv(folder / "significance.csv")
    assert set(significance["baseline"]) == {"SASRec@inner_size=32"} and len(significance) == 2
    assert significance["p_seeds"].notna().all() and significance["p_users"].between(0, 1).all()
    groups = pd.read_csv(folder / "groups.csv")
    sizes = groups[groups["model"] == MODELS[0]].groupby("split")["users"].sum()
    assert sizes["popularity"] == sizes["length"] == len(np.load(next(folder.glob("runs/*.npz")))["rank"])


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_needs_no_other_file(comparison):
    folder, _, _ = comparison
    tags = _Tags()
    tags.feed((folder / "report.html").read_text())
    assert not tags.open
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in tags.sources)
    pictures = [source for source in tags.sources if source.startswith("data:")]
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert len(pictures) == len(names) == len(list((folder / "figures").glob("*.svg"))) == 8
    assert {"ml-100k-curves", "ml-100k-metrics", "ml-100k-popularity", "ml-100k-length", "ml-100k-steps"} < names


def test_a_failed_run_does_not_end_the_others(workdir, capsys):
    """And what is told of a run is a metric that it has."""
    code = cli.main(["compare", "--models=FEARec,GRU4Rec", "--output_dir=out", "--seeds=[3]", *ARGUMENTS, *SHORT])
    captured = capsys.readouterr()
    assert code == 1 and "FEARec on ml-100k, seed 3 failed" in captured.err
    (run,) = pd.read_csv("out/runs.csv").to_dict("records")
    assert run["model"] == "GRU4Rec"
    assert f"GRU4Rec on ml-100k, seed 3: test NDCG@5 {run['test_ndcg@5']:.4f} in" in captured.err
    assert "1 failed" in Path("out/report.html").read_text()


def test_runs_in_parallel_on_ray(workdir, capsys):
    pytest.importorskip("ray", reason="parallel runs need Ray")
    assert cli.main(["compare", "--models=SASRec@inner_size=32", "--seeds=2", "--parallel=2", *ARGUMENTS]) == 0
    assert list(pd.read_csv("comparison/runs.csv")["seed"]) == [2020, 2021]


def test_a_changed_parameter_is_another_run(workdir, monkeypatch):
    trained = []

    def fake(job, datasets=None):
        trained.append(job.name)
        raise ValueError("stop")

    monkeypatch.setattr(compare_module, "run_job", fake)
    monkeypatch.setattr(compare_module, "estimate", lambda jobs, *args: dict.fromkeys(jobs, 1.0))
    for epochs in (1, 2):
        with pytest.raises(UserError, match="no run of the comparison succeeded"):
            compare(["SASRec"], **{**TINY, "epochs": epochs})
    assert len(set(trained)) == 2


def test_dry_run_estimates_and_stops(workdir, capsys):
    assert cli.main(["compare", "--models=GRU4Rec,V2", "--seeds=3", "--dry_run", *ARGUMENTS]) == 0
    error = capsys.readouterr().err
    assert "6 runs, 0 of them done already" in error and "GRU4Rec on ml-100k: 3 x at most" in error
    assert not list(Path("comparison/runs").iterdir())


@pytest.mark.parametrize(
    "arguments,says",
    [
        (["--models=SASRec", "--baseline=GRU4Rec"], "baseline must be one of the models compared (SASRec)"),
        (["--models=SASRec", "--seeds=0"], "seeds must be a number from 1 to 1000"),
        (["--models=SASRec", "--seeds=1000000001"], "seeds must be a number from 1 to 1000"),
        (["--models=SASRec", "--seeds=[1,-2]"], "seeds must be"),
        (["--models=SASRec", "--seeds=[1,1]"], "seeds names '1' twice"),
        (["--models=SASRec", "--parallel=0"], "parallel must be an integer of at least 1"),
        (["--models=SASRec", "--parallel=x"], "argument --parallel: invalid int value"),
        (["--models=SASRec", "--dataset=nothing-here"], "recbole-diffurec: dataset 'nothing-here' is neither"),
        (["--models=SASRec", "--dataset=../ml-100k"], "ml-100k"),
        (["--models=GRU4Rec", "--ray_address=127.0.0.1:9"], "no Ray cluster answers at '127.0.0.1:9'"),
        (["--models=Nothing"], "unknown model 'Nothing'"),
        (["--models=SASRec", "--output_dir=file"], "output_dir 'file' cannot be made"),
        (["--experiment=nothing"], "unknown experiment 'nothing'"),
        (
            ["--models=SASRec", "--additional_feat_suffix=[nothing]"],
            "trying out model 'SASRec' on data set 'ml-100k' failed inside RecBole (ValueError: ",
        ),
        (["--config_files=seed.yaml"], "seed must be an integer in [0, 4294967295], got 'x'"),
        (["--config_files=models.yaml"], "models must be a list of names, got 5"),
        (["--config_files=datasets.yaml"], "datasets must be a list of names, got {'a': 1}"),
    ],
)
def test_mistakes_are_one_sentence(arguments, says, workdir, capsys):
    Path("file").write_text("")
    for line in ("seed: x", "models: 5", "datasets: {a: 1}"):
        Path(f"{line.partition(':')[0]}.yaml").write_text(line)
    assert cli.main(["compare", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "Traceback" not in error


def test_the_papers_experiment_can_be_planned():
    paper = layers.experiment("paper")
    jobs = grid.plan(paper["models"], paper["datasets"], [1, 2], {})
    table_5 = {"GRU4Rec", "SASRec", "BERT4Rec", "STOSA", "ACVAE", "VSAN", "MFGAN", "CL4SRec", "DuoRec"}
    assert table_5 < {job.entry.label for job in jobs}
    assert len(jobs) == 12 * 3 * 2 and paper["baseline"] in {job.entry.label for job in jobs}
    config = next(job for job in jobs if job.entry.label.startswith("V2")).config()
    assert config["weight_decay"] == 1e-4 and config["epochs"] == 41 and not math.isnan(config["learning_rate"])


def test_latex_text_is_escaped():
    assert readable.latex_text("a_b & 5% {x} \\ ±") == r"a\_b \& 5\% \{x\} \textbackslash{} $\pm$"
