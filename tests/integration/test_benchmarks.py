"""The benchmark scripts run, at sizes at which their figures say nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY, flags

import recbole_diffurec


@pytest.mark.skipif(shutil.which("timeout") is None, reason="benchmarks/gpu.sh needs the coreutils' timeout")
def test_the_pages_of_a_gpu_are_written_on_any_machine(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "BENCHMARKS_TINY": "1", "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "benchmarks/gpu.sh"), str(tmp_path), str(tmp_path / "pages")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path.stem for path in (tmp_path / "pages").glob("*.md")}
    assert pages == {"training", "inference", "utilisation", "memory", "first_run", "time_to_quality"}


@pytest.mark.slow
def test_the_page_of_the_next_items_together_is_written(tmp_path):
    environment = {**os.environ, "BENCHMARKS_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    sizes = ["--slots=2", "--samples=2", "--users=20", *flags({**TINY, "user_inter_num_interval": "[5,30]"})]
    command = [sys.executable, str(ROOT / "benchmarks/joint.py"), "--dataset=ml-100k", "--exclude_seen", *sizes]
    command += ["--recent=10", "--work=kept"]

    def made() -> dict:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / "joint_ml-100k.json").read_text())

    found = made()
    networks = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("kept/ml-100k-10/saved/*.pth")}
    assert len(networks) == 3 and made() == found  # of the networks that are there
    assert networks == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("kept/ml-100k-10/saved/*.pth")}
    command += ["--slots=3"]  # of which another future is held out, from the classifier as well
    made()
    assert len(list(tmp_path.glob("kept/ml-100k-10/saved/*.pth"))) == 6
    written = (tmp_path / "kept/ml-100k-10/ml-100k/ml-100k.inter").read_text().splitlines()[1:]
    assert max(Counter(line.split("\t")[0] for line in written).values()) == 10
    assert len(found["nll"]) == 4 and len(found["lists"]) == 7 and len(found["next"]) == 3
    # Hardly trained, every one of a few hundred items is about as likely.
    assert all(3 < row["nll"] < 8 for row in found["nll"].values())
    assert all(0 < row["coverage"] < 1 for row in found["lists"].values())
    assert "| joint, 1 step |" in (tmp_path / "joint_ml-100k.md").read_text()


@pytest.mark.slow
def test_draws_are_compared_after_equal_seconds_and_go_on_where_they_were(tmp_path):
    environment = {**os.environ, "BENCHMARKS_RESULTS": str(tmp_path), "BENCHMARKS_TINY": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks/draws.py"), "--dataset=ml-100k", "--users=10", "--seconds=1"]

    def made(*more: str) -> dict:
        done = subprocess.run([*command, *more], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / "draws.json").read_text())

    timed = made("--only_time")
    assert len(timed["epoch_seconds"]) == 4 and not timed["runs"] and not (tmp_path / "draws.md").exists()
    trained = made()
    assert trained["epoch_seconds"] == timed["epoch_seconds"] and list(trained["runs"]) == list(timed["epoch_seconds"])
    for name, run in trained["runs"].items():
        assert run["epochs"] == max(1, round(1 / timed["epoch_seconds"][name])) and run["spread"] > 0
    assert made()["runs"] == trained["runs"]  # not one of them again


def test_one_step_is_ranked_by_its_estimate_and_by_its_state(tmp_path, trained):
    environment = {**os.environ, "BENCHMARKS_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks/one_step.py"), str(trained["DiffuRec"]), "--users=50"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "one_step.json").read_text())
    shared = {line["name"]: line["overlap"] for line in found["lines"]}
    assert found["users"] == 50 and list(shared) == ["all_steps", "one_step", "factor_0", "state", "state_mean"]
    # At lambda = .001 all estimates are much the same; the state is x_T, which is noise, but for little.
    missing = subprocess.run(
        [*command, "--code=nowhere"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert missing.returncode == 1 and "'nowhere' has no 'src/model.py': git clone" in missing.stderr
    assert min(shared["one_step"], shared["factor_0"]) > 0.9 > 0.3 > max(shared["state"], shared["state_mean"])


def test_weights_of_cooccurrences_are_those_that_validation_has(tmp_path, trained):
    values = {
        **TINY,
        "epochs": 2,
        "cooccurrence_weight": 2.0,
        "cooccurrence_decay": 0.6,
        "checkpoint_dir": str(tmp_path),
    }
    result = recbole_diffurec.run("SASRec", **values, inner_size=16)
    environment = {**os.environ, "BENCHMARKS_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks/cooccurrence.py")]
    done = subprocess.run(
        [*command, result["checkpoint"]], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (of_model,) = json.loads((tmp_path / "cooccurrence.json").read_text())["figures"]
    found = {(line["weight"], line["decay"]): line for line in of_model["valid"]}
    assert found[2.0, 0.6]["ndcg"] == pytest.approx(result["best_valid_result"]["ndcg@10"], abs=1e-4)
    assert found[2.0, 0.6]["ndcg"] != found[0.0, 1.0]["ndcg"]
    without = subprocess.run(
        [*command, str(trained["DiffuRec"])], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert without.returncode == 2 and "trained without cooccurrence_weight" in without.stderr


def test_the_tables_of_results_are_those_of_what_is_kept():
    page = "import trainings; assert trainings.page() == trainings.PAGE.read_text(encoding='utf-8')"
    command = [sys.executable, "-c", page]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python benchmarks/trainings.py --page\n{done.stderr[-3000:]}"


def test_what_was_trained_is_tested_over_figures_and_over_seeds(tmp_path):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    metrics = ["hit@5", "hit@10", "hit@20", "ndcg@5", "ndcg@10", "ndcg@20"]
    rows = [
        {"name": "A", "model": "DiffuRecSys", "seeds": 3, "against": "B"},
        {"name": "B", "model": "DiffuRec", "seeds": 3},
    ]
    (tmp_path / "plan.yaml").write_text(json.dumps({"published": {}, "trained": rows}))
    folder = tmp_path / "trainings/ml-100k"
    folder.mkdir(parents=True)
    figures = {name: {seed: dict(zip(metrics, rng.random(6))) for seed in (2020, 2021, 2022)} for name in "AB"}
    rest = {"best_epoch": 1, "seconds_to_best": 2.0, "valid": {"ndcg@10": 0.1}, "command": "recbole-diffurec run"}
    for name, of in figures.items():
        for seed in sorted(of)[name == "B" :]:  # the first seed of B is not there yet
            run = {"seed": seed, "unmasked": of[seed], "masked": of[seed], **rest}
            run["machine"] = {"processor": "one", "date": "today"}
            (folder / f"{name.lower()}-{seed}.json").write_text(json.dumps(run))
    places = {"BENCHMARKS_RESULTS": str(tmp_path), "BENCHMARKS_TRAININGS": str(tmp_path / "plan.yaml")}
    done = subprocess.run(
        [sys.executable, "-c", "import trainings; print(trainings.tables('ml-100k'))"],
        env={**os.environ, **places}, cwd=ROOT / "benchmarks", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (np.array([[figures[name][seed][m] for m in metrics] for seed in (2021, 2022)]) for name in "AB")
    over_figures = stats.ttest_rel(a.mean(axis=0), b.mean(axis=0)).pvalue
    over_seeds = [stats.ttest_rel(a[:, m], b[:, m], alternative="greater").pvalue for m in (1, 4)]
    ps = " | ".join(f"{p:.4f}" for p in (*over_seeds, *over_seeds))
    assert f"| A | B | here |  | {over_figures:.4f} | 2 | {ps} |" in done.stdout


def test_the_printed_significance_is_that_of_six_figures():
    published = yaml.safe_load((ROOT / "benchmarks/trainings.yaml").read_text())["published"]
    for rows in published.values():
        of = {row["name"]: row for row in rows if "p" in row or row["name"] == "DiffuRec"}
        diffurec, v1, v2 = (np.array(of[name]["figures"]) for name in ("DiffuRec", "V1", "V2 = DiffuRecSys"))
        ttest = pytest.importorskip("scipy.stats").ttest_rel
        # Each of the two is the other's, to what rounding of the means leaves open.
        assert ttest(v1, diffurec).pvalue == pytest.approx(of["V2 = DiffuRecSys"]["p"], abs=2e-4)
        assert ttest(v2, diffurec).pvalue == pytest.approx(of["V1"]["p"], abs=3e-4)


@pytest.mark.slow
def test_what_is_trained_is_audited(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    tiny = {name: value for name, value in TINY.items() if name != "show_progress"}
    row = {"name": "DiffuRec, tiny", "model": "DiffuRec", "seeds": 1, **tiny, "user_inter_num_interval": "[5,30]"}
    (tmp_path / "plan.yaml").write_text(json.dumps({"published": {}, "trained": [row]}))
    places = {"BENCHMARKS_RESULTS": str(tmp_path), "BENCHMARKS_TRAININGS": str(tmp_path / "plan.yaml")}
    environment = {**os.environ, **places, "OMP_NUM_THREADS": "1"}
    for script, more in (("trainings", []), ("audits", ["--users=30"])):
        command = [sys.executable, str(ROOT / f"benchmarks/{script}.py"), "--dataset=ml-100k", "--work=w", *more]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "audits/ml-100k/diffurec-tiny-2020.json").read_text())
    assert found["users"] == 30 and {"as_trained", "factor_0"} <= {line["name"] for line in found["lines"]}
    page = (tmp_path / "audits_ml-100k.md").read_text()
    assert f"| DiffuRec, tiny | {found['lines'][0]['ndcg']:.4f} |" in page and found["verdict"]["sentence"] in page
    assert (tmp_path / "audits_ml-100k.png").stat().st_size > 10_000


@pytest.mark.slow
def test_trainings_are_kept_one_by_one_and_go_on_where_they_were(tmp_path):
    tiny = {
        **{name: value for name, value in TINY.items() if name != "show_progress"},
        "user_inter_num_interval": "[5,30]",
    }
    row = {"name": "SASRec, tiny", "model": "SASRec", "seeds": 2, **tiny}
    plan = {"published": {}, "trained": [row]}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    places = {"BENCHMARKS_RESULTS": str(tmp_path), "BENCHMARKS_TRAININGS": str(tmp_path / "plan.yaml")}
    environment = {**os.environ, **places, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks/trainings.py"), "--dataset", "ml-100k"]

    def trained(*more: str) -> list[str]:
        done = subprocess.run([*command, *more], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return sorted(path.name for path in (tmp_path / "trainings/ml-100k").glob("*.json"))

    assert trained("--hours=0", "--work=w") == []
    assert trained("--work=w") == ["sasrec-tiny-2020.json", "sasrec-tiny-2021.json"]
    first = tmp_path / "trainings/ml-100k/sasrec-tiny-2020.json"
    found = json.loads(first.read_text())
    assert found["epochs"] == 1 and found["seed"] == 2020 and found["seconds_to_best"] > 0
    assert "--hidden_size=16" in found["command"] and str(tmp_path) not in first.read_text()
    # Whoever has seen a film does not see it again: without the seen ones a target ranks higher, or as high.
    assert found["masked"]["hit@20"] >= found["unmasked"]["hit@20"] and found["masked"] != found["unmasked"]
    audited = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/audits.py"), "--dataset=ml-100k", "--users=30", "--work=w"],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert audited.returncode == 1 and "nothing is trained that can be audited" in audited.stderr
    first.unlink()
    before = (tmp_path / "trainings/ml-100k/sasrec-tiny-2021.json").stat().st_mtime_ns
    assert trained("--work=again") == ["sasrec-tiny-2020.json", "sasrec-tiny-2021.json"]
    assert (tmp_path / "trainings/ml-100k/sasrec-tiny-2021.json").stat().st_mtime_ns == before
    assert json.loads(first.read_text())["unmasked"] == found["unmasked"]


@pytest.mark.slow
def test_searches_are_made_once_and_leave_recipes(tmp_path):
    pytest.importorskip("ray", reason="a search needs ray")
    budget = {"num_trials": 2, "max_epochs": 2, "grace_epochs": 1, "time_budget": 600}
    tiny = {"train_batch_size": 64, "user_inter_num_interval": "[5,30]"}
    plan = {"budget": budget, "common": tiny, "models": {"VSAN": {"MAX_ITEM_LIST_LENGTH": 5}, "DuoRec": {}}}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    environment = {**os.environ, "BENCHMARKS_RESULTS": str(tmp_path), "BENCHMARKS_TINY": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks/searches.py"), "--dataset=ml-100k", "--only=VSAN", "--work=w"]

    def made() -> Path:
        done = subprocess.run(
            [*command, "--plan=plan.yaml"], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / "search/ml-100k_VSAN.csv"

    trials = made().read_text().splitlines()
    assert len(trials) == 3 and not (tmp_path / "search/ml-100k_DuoRec.csv").exists()
    recipe = (tmp_path / "search/ml-100k-VSAN.yaml").read_text()
    scores = [float(line.split(",")[3]) for line in trials[1:]]
    assert f"NDCG@10 {max(scores):.4f} there" in recipe and "recbole-diffurec tune --model=VSAN" in recipe
    values = yaml.safe_load(recipe)
    assert values["MAX_ITEM_LIST_LENGTH"] == 5 and {"kl_weight", "learning_rate"} < values.keys()
    assert str(tmp_path) not in recipe and "data_path" not in recipe
    assert all("# (" in line for line in recipe.splitlines() if not line.startswith("#"))
    before = (tmp_path / "search/ml-100k_VSAN.csv").stat().st_mtime_ns
    assert made().stat().st_mtime_ns == before


@pytest.mark.slow
def test_models_are_tuned_for_each_protocol_and_the_page_ranks_them(tmp_path):
    pytest.importorskip("ray", reason="a search needs ray")
    plan = yaml.safe_load((ROOT / "benchmarks/protocols.yaml").read_text())
    asked = yaml.safe_load(plan["protocols"]["temporal"]["eval_args"])
    assert asked == yaml.safe_load((ROOT / "properties/experiment/temporal.yaml").read_text())["eval_args"]
    plan["budget"] = {"num_trials": 1, "max_epochs": 1, "grace_epochs": 1, "time_budget": 600}
    plan |= {"final_seeds": 2, "datasets": ["ml-100k"]}
    plan["common"] |= {"user_inter_num_interval": "[5,30]"}
    for model in plan["models"].values():
        model["values"].pop("max_epochs", None)
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    environment = {**os.environ, "BENCHMARKS_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / "benchmarks/protocols.py"),
        "--plan=plan.yaml",
        "--only",
        "SASRec",
        "DiffuRec",
    ]

    def made() -> set[Path]:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return {path for path in tmp_path.glob("protocols/ml-100k/*.json")}

    before = {path: path.stat().st_mtime_ns for path in made()}
    assert len(before) == 4 and {path: path.stat().st_mtime_ns for path in made()} == before
    for path in before:
        found = json.loads(path.read_text())
        assert len(found["trials"]) == 1 and [final["seed"] for final in found["finals"]] == [2020, 2021]
        assert found["best"]["repeat_bias"] is True
    written = (tmp_path / "protocols.md").read_text()
    rows = [line for line in written.splitlines() if line.startswith(("| SASRec", "| DiffuRec |"))]
    assert len(rows) == 2 and str(tmp_path) not in written
    assert all(
        {cell[-4:-1] for row in rows for cell in [row.split("|")[column]]} <= {"(1)", "(2)"} for column in (2, 3, 4, 5)
    )
