"""A search from the command to the tested best, interrupted on the way."""

import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from conftest import ROOT, TINY, flags

from recbole_diffurec import cli, run
from recbole_diffurec.errors import Interrupted, UserError
from recbole_diffurec.experiments.tune import objective_function, tune

ray = pytest.importorskip("ray", reason="tuning needs Ray")

# What a search space or an option of the search may say is left to them.
FIXED = flags({name: value for name, value in TINY.items() if name not in ("epochs", "n_layers", "show_progress")})
SPACE = "learning_rate loguniform -8,-4\nn_layers choice [1,2]\nhidden_dropout_prob uniform 0.0,0.5\n"


def command(*arguments: str) -> list[str]:
    main = [sys.executable, str(ROOT / "run_recbole_diffurec.py"), "tune", "--params_file=space.test"]
    return [*main, "--output_dir=out", "--max_epochs=4", "--grace_epochs=1", "--num_trials=5", *FIXED, *arguments]


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """A search that was interrupted after its second trial, resumed for a moment, and resumed to its end."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "space.test").write_text(SPACE)
    arguments = ["--model=DiffuRecSys", "--sampling_steps=2", "--concurrent_trials=1"]
    with open(folder / "first.log", "w") as log:
        first = subprocess.Popen(command(*arguments), cwd=folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 600
        while "2 ended" not in (folder / "first.log").read_text() and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
        os.kill(first.pid, signal.SIGINT)
        code = first.wait(timeout=120)
    before = pd.read_csv(folder / "out/trials.csv")
    resumed = [
        subprocess.run(
            command(*arguments, "--resume", *more), cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
        for more in (["--time_budget=1", "--final_seeds=0"], [])
    ]
    return folder, code, before, resumed


def test_an_interrupted_search_leaves_a_table_and_goes_on(search):
    folder, code, before, (moment, again) = search
    said = (folder / "first.log").read_text().splitlines()
    assert code == 130 and said[-1].endswith("interrupted; --resume resumes the search in 'out'")
    assert said[0].startswith("5 trials of at most 4 epochs") and said[0].endswith("what Ray says is in 'out/ray.log'")
    # Nothing but these and a line for each trial: Ray's words are in their file.
    assert [line for line in said[1:-1] if not re.fullmatch(r"trial .* \d ended, best .*, about .* left", line)] == []
    assert "Stop signal received" in (folder / "out/ray.log").read_text()
    assert 2 <= len(before) < 5 and before["score"].notna().sum() >= 2
    # Less time than a trial's process takes to start.
    assert moment.returncode == 0, moment.stderr
    assert f"time_budget 1 is over: {(before['state'] != 'RUNNING').sum()} of 5 trials ended" in moment.stderr
    assert again.returncode == 0, again.stderr
    trials = pd.read_csv(folder / "out/trials.csv")
    assert len(trials) == 5 and set(trials["state"]) <= {"TERMINATED", "PRUNED"}
    ended = before[before["state"] != "RUNNING"].set_index("trial")["score"]
    assert ended.equals(trials.set_index("trial")["score"][ended.index])


@pytest.mark.slow
def test_no_process_of_a_killed_search_lives_on(tmp_path):
    """Not even those that trials run in."""
    (tmp_path / "space.test").write_text(SPACE)
    driver = subprocess.Popen(
        command("--model=DiffuRecSys", "--concurrent_trials=1"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    table, deadline = tmp_path / "out" / "trials.csv", time.monotonic() + 600
    while not table.is_file() and driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started = psutil.Process(driver.pid).children(recursive=True)
    assert any("ray::" in name for process in started for name in process.cmdline()), "a trial has reported"
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(started, timeout=150)  # its workers look for it once a minute at worst
    assert not alive, [process.cmdline()[:2] for process in alive]


def test_on_a_terminal_a_line_says_how_far_the_search_is(workdir):
    """From the first second; Ctrl-C, before any trial is validated, gets one sentence."""
    Path("space.test").write_text(SPACE)
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, command("--concurrent_trials=1", "--sampling_steps=2"))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    said, deadline = "", time.monotonic() + 600
    while "0 of 5 trials done, 1 running" not in said:
        assert time.monotonic() < deadline, said
        said += os.read(terminal, 65536).decode()
    assert said.startswith("\rsearch: starting, 0 s") and "WARNING" not in said
    os.write(terminal, b"\x03")
    after = ""
    with contextlib.suppress(OSError):  # at the end
        while more := os.read(terminal, 65536).decode():
            after += more
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    sentences = [line for line in re.split(r"[\r\n]+", after) if line.strip(" ^C\x1b[0m") and "search: " not in line]
    assert sentences == ["recbole-diffurec: interrupted; --resume resumes the search in 'out'"]


@pytest.mark.parametrize("stop,code", [(KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM, "a.state"), 143)])
def test_whatever_is_interrupted_the_search_is_what_is_resumed(stop, code, workdir, monkeypatch, capsys):
    def search(*args, **kwargs):
        raise stop

    monkeypatch.setattr("recbole_diffurec.experiments.tune.tune", search)
    assert cli.main(["tune", "--params_file=space.test", "--output_dir=out"]) == code
    assert capsys.readouterr().err == "recbole-diffurec: interrupted; --resume resumes the search in 'out'\n"


def test_poor_trials_are_pruned(search):
    trials = pd.read_csv(search[0] / "out/trials.csv").set_index("state")
    assert (trials.loc[["PRUNED"], "epochs"] < 4).all()
    assert trials.loc[["TERMINATED"], "score"].max() >= trials.loc[["PRUNED"], "score"].max()


def test_the_best_is_what_run_takes_and_is_tested_once(search, monkeypatch):
    folder = search[0]
    trials = pd.read_csv(folder / "out/trials.csv")
    top = trials.loc[trials["score"].idxmax()]
    best = yaml.safe_load((folder / "out/best.yaml").read_text())
    assert best["learning_rate"] == pytest.approx(top["learning_rate"]) and best["n_layers"] == top["n_layers"]
    (final,) = folder.glob("out/final-*.json")
    final = json.loads(final.read_text())
    # A trial has one thread, the final run all of them, so that their sums are rounded differently.
    assert final["best_valid_result"]["ndcg@10"] == pytest.approx(top["score"], abs=0.03)
    monkeypatch.chdir(folder)
    again = run("DiffuRecSys", config_files=["out/best.yaml"], gpu_id="", show_progress=False)
    assert again["test_result"] == final["test_result"]
    assert Path("out/search.png").stat().st_size > 5000 and Path("out/search.svg").is_file()


def test_a_search_is_neither_overwritten_nor_resumed_as_another(search, monkeypatch, capsys):
    monkeypatch.chdir(search[0])
    fixed = [
        *FIXED,
        "--sampling_steps=2",
        "--max_epochs=4",
        "--num_trials=5",
        "--output_dir=out",
        "--params_file=space.test",
    ]
    assert cli.main(["tune", *fixed]) == 2
    assert "holds a search already" in capsys.readouterr().err
    assert cli.main(["tune", *fixed, "--weight_decay=0.1", "--resume"]) == 2
    assert "has another weight_decay: resume it as it was" in capsys.readouterr().err


def test_data_that_recbole_cannot_prepare(workdir, capsys):
    Path("space.test").write_text(SPACE)
    assert cli.main(["tune", "--params_file=space.test", "--additional_feat_suffix=[nothing]", *FIXED]) == 2
    assert "preparing data set 'ml-100k' failed inside RecBole (ValueError" in capsys.readouterr().err


@pytest.mark.slow
def test_a_time_budget_too_short_for_any_trial(workdir, capsys):
    Path("space.test").write_text(SPACE)
    assert cli.main(["tune", "--params_file=space.test", "--time_budget=1", "--max_epochs=4", *FIXED]) == 2
    error = capsys.readouterr().err
    assert "no trial was validated within time_budget 1: --resume with more of it resumes the search" in error


def test_epochs_have_one_limit(workdir, capsys):
    Path("space.test").write_text(SPACE)
    assert cli.main(["tune", "--params_file=space.test", "--epochs=30", "--max_epochs=4", *FIXED]) == 2
    assert "epochs (30) and max_epochs (4) are the same limit" in capsys.readouterr().err
    assert not Path("tuning").exists()


def test_a_time_budget_needs_the_main_thread(workdir):
    Path("space.test").write_text(SPACE)
    with ThreadPoolExecutor() as pool, pytest.raises(UserError, match="time_budget needs the main thread"):
        pool.submit(tune, params_file="space.test", time_budget=10).result()


@pytest.mark.slow
def test_optuna_proposes_what_it_is_asked_for(workdir, capsys):
    Path("space.test").write_text("learning_rate loguniform -8,-4\nn_layers choice [1,2]\n")
    arguments = ["--search=optuna", "--num_trials=3", "--max_epochs=1", "--scheduler=none", "--final_seeds=0"]
    assert cli.main(["tune", "--params_file=space.test", "--sampling_steps=1", *arguments, *FIXED]) == 0
    trials = pd.read_csv("tuning/trials.csv")
    assert len(trials) == 3 and trials["score"].notna().all() and trials["learning_rate"].nunique() == 3
    assert trials["learning_rate"].between(np.exp(-8), np.exp(-4)).all() and set(trials["n_layers"]) <= {1, 2}
    best = yaml.safe_load(Path("tuning/best.yaml").read_text())
    assert best["learning_rate"] == pytest.approx(trials.loc[trials["score"].idxmax(), "learning_rate"])


@pytest.mark.slow
def test_recboles_models_and_a_grid(workdir, capsys):
    Path("space.test").write_text("hidden_dropout_prob choice [0.1,0.9]\n")
    sasrec = [
        "--model=SASRec",
        "--inner_size=32",
        "--n_layers=1",
        "--search=grid",
        "--scheduler=none",
        "--max_epochs=1",
    ]
    assert cli.main(["tune", "--params_file=space.test", *sasrec, "--final_seeds=0", *FIXED]) == 0
    trials = pd.read_csv("tuning/trials.csv")
    assert sorted(trials["hidden_dropout_prob"]) == [0.1, 0.9] and set(trials["state"]) == {"TERMINATED"}


@pytest.mark.parametrize(
    "arguments,space,says",
    [
        ([], "n_layers choice [0]", "line 1: n_layers must be"),
        (["--n_layers=1"], "n_layers choice [1]", "line 1: 'n_layers' is given a fixed value too"),
        ([], "epochs choice [1,2]", "'epochs' must be the same for all trials"),
        (["--search=grid"], "learning_rate uniform 0.1,0.2", "grid search needs choices"),
        (["--search=magic"], SPACE, "search must be one of random, grid, optuna, got 'magic'"),
        (["--scheduler=magic"], SPACE, "scheduler must be one of"),
        (["--num_trials=0"], SPACE, "num_trials must be an integer of at least 1"),
        (["--resume"], SPACE, "holds no search to resume"),
        (["--dataset=nothing-here"], SPACE, "dataset 'nothing-here' is neither"),
        (["--learning_rat=1"], SPACE, "unknown parameter 'learning_rat'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, space, says, workdir, capsys):
    Path("space.test").write_text(space)
    assert cli.main(["tune", "--params_file=space.test", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert not Path("tuning/trials.csv").exists()


def test_recboles_own_tuning_takes_our_objective(workdir):
    pytest.importorskip("hyperopt", reason="RecBole's HyperTuning needs hyperopt")
    from recbole.trainer import HyperTuning

    Path("space.test").write_text("#comment\nn_layers choice [1,2]\n")
    small = {name: value for name, value in TINY.items() if name != "n_layers"}
    Path("small.yaml").write_text(yaml.safe_dump({**small, "sampling_steps": 1}))
    tuning = HyperTuning(
        functools.partial(objective_function, model="DiffuRecSys", dataset="ml-100k"),
        params_file="space.test",
        fixed_config_file_list=["small.yaml"],
        algo="exhaustive",
    )
    tuning.run()
    assert tuning.best_params["n_layers"] in (1, 2) and len(tuning.params2result) == 2
