"""The report of a comparison: what it measures against, what stands on top, and that all of it can be read."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recbole_diffurec.experiments import about, figures, readable, report
from recbole_diffurec.experiments.grid import Entry, Job
from recbole_diffurec.experiments.store import RunStore
from recbole_diffurec.experiments.tables import Results
from recbole_diffurec.host import catalogue

CONFIG = {
    "user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[5,inf)", "mask_seen": False, "epochs": 9,
    "stopping_step": 2, "valid_metric": "NDCG@10", "loss_type": "CE",
}  # fmt: skip
MACHINE = {"system": "Linux x86_64", "processor": "Fast & Co", "processors": 4, "threads": 2}


def job(label: str, seed: int = 1) -> Job:
    return Job(Entry(label, label.partition("@")[0]), "shop", seed, f"{label}{seed}", {})


def results(
    folder: Path,
    scores: dict[str, tuple[float, float]],
    baseline: str | None = None,
    seeds: int = 1,
    **config: Any,
) -> Results:
    """Runs with these NDCG@10 of validation and test, by label."""
    store, jobs = RunStore(folder / "runs"), []
    for seed, (label, (valid, test)) in itertools.product(range(1, seeds + 1), scores.items()):
        one = job(label, seed)
        ranks = np.where(np.arange(40) < 40 * test, 1, 0).astype(np.int32)
        history = [
            {"epoch": n, "train_seconds": 1.0, "train_loss": 3.0 / (n + seed), "learning_rate": 0.1}
            | {"valid_score": valid}
            for n in range(3)
        ]
        kept = {
            "label": label, "device": "cpu", "checkpoint": "a.pth", "n_parameters": 10, "seconds": 1.0,
            "eval_seconds": 1.0, "best_epoch": 0, "n_users": 40, "n_items": 9, "n_interactions": 99,
            "best_valid_result": {"hit@10": valid, "ndcg@10": valid}, "test_result": {"hit@10": test, "ndcg@10": test},
            "lists": {"10": dict.fromkeys(("coverage", "entropy", "gini", "average_popularity", "tail_share"), 0.5)},
            "history": history, "config": {**CONFIG, **config}, "versions": {"torch": "2"},
            "date": f"2026-01-0{seed}T00:00:00+00:00", "machine": MACHINE,
        }  # fmt: skip
        users = np.array([f"u{n}" for n in range(40)])
        lengths = np.arange(5, 45, dtype=np.int32)
        store.write(one, kept, {"user": users, "rank": ranks, "head": ranks > 0, "length": lengths})
        jobs.append(one)
    return Results(jobs, store, baseline)


def test_one_reference_which_validation_chooses(tmp_path: Path) -> None:
    """GRU4Rec and DiffuRecSys are the best on test data, which nobody may choose by."""
    scores = {"DiffuRec": (0.5, 0.2), "DiffuRecSys": (0.4, 0.6), "SASRec": (0.3, 0.1), "GRU4Rec": (0.2, 0.5)}
    found = results(tmp_path, scores)
    assert found.baseline_of("shop") == "SASRec" and set(found.significance["baseline"]) == {"SASRec"}
    improvement = found.improvement("shop", "test")
    assert improvement is not None and improvement.name == "DiffuRec over SASRec"
    assert improvement["NDCG@10"] == pytest.approx(100)
    table = readable.marked(found, "shop", "test", "<b>{}</b>", "<u>{}</u>")
    assert table.index[-1] == "DiffuRec over SASRec" and table["HR@10"].iloc[-1] == "+100.0 %"
    said = "SASRec, the best of the baselines by validation NDCG@10. The improvement is that of DiffuRec"
    assert said in found.reference("shop")
    assert said in readable.markdown(found) and said in readable.terminal(found) and said in readable.latex(found)


def test_the_reference_that_is_asked_for(tmp_path: Path) -> None:
    scores = {"DiffuRec": (0.5, 0.2), "DiffuRecSys": (0.4, 0.6), "GRU4Rec": (0.2, 0.5)}
    found = results(tmp_path, scores, baseline="DiffuRec")
    assert found.baseline_of("shop") == "DiffuRec" and found.challenger_of("shop") == "DiffuRecSys"
    assert "DiffuRec, as asked for" in found.reference("shop")


def test_methods_alone_improve_on_nothing(tmp_path: Path) -> None:
    found = results(tmp_path, {"DiffuRec": (0.4, 0.2), "DiffuRecSys": (0.5, 0.6)})
    assert found.baseline_of("shop") == "DiffuRecSys" and found.improvement("shop", "test") is None
    assert "the best of all models by validation NDCG@10" in found.reference("shop")


def test_what_stands_on_top(tmp_path: Path) -> None:
    found = results(tmp_path, {"DiffuRec": (0.4, 0.2), "SASRec": (0.5, 0.6)}, seeds=2)
    command = about.command(
        "compare",
        {"models": ["DiffuRec", "SASRec"], "seeds": 2, "baseline": None, "config_files": []},
        {
            "gpu_id": None,
            "show_progress": False,
            "parallel": 1,
            "cpus_per_run": 2,
            "topk": [5, 10],
            "data_path": "my data",
        },
    )
    asked = "--models=DiffuRec,SASRec --seeds=2 --gpu_id= --cpus_per_run=2 '--topk=[5, 10]' '--data_path=my data'"
    assert command == f"recbole-diffurec compare {asked}"
    rows = about.rows(found, command)
    assert rows["command"] == command
    assert "items of the history are ranked too (not masked)" in rows["protocol"]
    assert rows["protocol"].startswith("leave one out") and "users with [5,∞) interactions" in rows["protocol"]
    assert "best validation NDCG@10 of at most 9, stopping after 3 validations" in rows["chosen by"]
    assert rows["date"] == "runs ended from 2026-01-01 00:00 UTC to 2026-01-02 00:00 UTC"
    assert rows["machine"] == "Linux x86_64, Fast & Co, 4 processors; on cpu, threads: 2"
    report.write(found, [], {}, command, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    top = page[: page.index("<h2")]
    assert (
        "not masked" in top
        and "Fast &amp; Co" in top
        and "<span>--models=DiffuRec,SASRec</span>" in top
        and "torch 2" in top
    )


def test_where_protocols_differ_the_models_are_named(tmp_path: Path) -> None:
    found = results(tmp_path, {"DiffuRec": (0.4, 0.2), "SASRec": (0.5, 0.6)})
    found.results[found.jobs[1]]["config"]["mask_seen"] = True
    said = about.rows(found, "")["protocol"]
    assert re.search(r"DiffuRec: .*not masked.*; SASRec: .*\(masked\)", said)


def test_runs_of_earlier_versions_say_what_they_lack(tmp_path: Path) -> None:
    found = results(tmp_path, {"SASRec": (0.5, 0.6)})
    for result in found.results.values():
        del result["date"], result["machine"]
    rows = about.rows(found, "")
    assert rows["date"] == "not kept" and rows["machine"] == "not kept; device cpu"


def test_a_run_says_where_and_when_it_was() -> None:
    said = about.here_and_now()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", said["date"])
    assert said["machine"]["processors"] >= 1 and said["machine"]["processor"]


def test_losses_of_different_kinds_have_axes_of_their_own(tmp_path: Path) -> None:
    scores = dict.fromkeys(["DiffuRec", "SASRec", "GRU4Rec", "DuoRec", "CL4SRec", "ACVAE"], (0.5, 0.5))
    found = results(tmp_path, scores, seeds=2)
    assert found.losses("shop") == {
        "cross-entropy": ["DiffuRec", "SASRec", "GRU4Rec"],
        "cross-entropy and a contrast": ["DuoRec", "CL4SRec"],
        "loss of ACVAE": ["ACVAE"],
    }
    drawn = figures._curves(found, "shop").axes
    assert [axes.get_title("left") for axes in drawn] == [*found.losses("shop"), ""]
    labelled = [[line.get_label() for line in axes.lines if not line.get_label().startswith("_")] for axes in drawn]
    assert labelled == [*found.losses("shop").values(), list(scores)]


def test_the_loss_follows_the_parameters() -> None:
    loss = {(name, kind): catalogue.find(name).loss_of({"loss_type": kind}) for name in ("SASRec", "STOSA", "FEARec")
            for kind in ("CE", "BPR")}  # fmt: skip
    assert loss["SASRec", "CE"] == loss["STOSA", "CE"] == "cross-entropy" and loss["SASRec", "BPR"] == "BPR"
    assert len({loss["SASRec", "BPR"], loss["STOSA", "BPR"], loss["FEARec", "BPR"], loss["FEARec", "CE"]}) == 3


def test_all_lines_of_a_model_have_its_colour_undiluted(tmp_path: Path) -> None:
    labels = [f"SASRec@seed{n}" for n in range(13)]
    found = results(tmp_path, dict.fromkeys(labels, (0.5, 0.5)), seeds=3)
    axes = figures._curves(found, "shop").axes[-1]
    assert len({line.get_color() for line in axes.lines}) == 13
    assert {line.get_alpha() for line in axes.lines} == {None}
    assert len(axes.lines) == 13 * 4 and sum(not line.get_label().startswith("_") for line in axes.lines) == 13


def test_wide_tables_are_cut_between_columns() -> None:
    table = pd.DataFrame({f"NDCG@{k}": ["<b>0.1234 ± 0.0012</b>"] * 2 for k in range(14)}, index=["a", "b" * 80])
    parts = report._parts(table)
    assert [name for part in parts for name in part] == list(table) and 2 <= len(parts) <= 3
    page = report._table(table, escape=False)
    assert page.count("<table>") == len(parts) == page.count("<th>a</th>") and page.count("<td>") == 28


def test_no_column_is_cut_in_a_browser(tmp_path: Path, browser: Any) -> None:
    scores = {f"DiffuRecSys@hidden_dropout_prob=0.{n}+noise_schedule=truncated_linear": (0.1, 0.1) for n in range(14)}
    found = results(tmp_path, {"SASRec": (0.5, 0.5), **scores})
    report.write(found, [], {}, "command", tmp_path / "report.html")
    for width, scheme in itertools.product((1280, 390), ("light", "dark")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # On a telephone a table is moved sideways, and its labels stay.
        cut = page.locator(".scroll").evaluate_all("all => all.filter(one => one.scrollWidth > one.clientWidth).length")
        assert cut == 0 or width == 390
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        page.close()
