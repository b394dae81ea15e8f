"""A training that is killed and resumed ends as if it had never been."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, flags

from recbole_diffurec import UserError, cli, run
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.trainer import PluginTrainer

SMALL = {**TINY, "epochs": 3, "train_batch_size": 256}
OURS = {**SMALL, "sampling_steps": 2, "lr_decay_step": 2, "step_sampler": "loss_aware", "ema_decay": 0.9}


class Killed(BaseException):
    """As sudden as SIGKILL: nothing of ours catches it."""


def interrupted_run(monkeypatch, at: int, minutes: float, **arguments) -> None:
    """A run that dies before its ``at``-th batch, keeping its state every ``minutes``."""
    calls = iter(range(10**6))
    between = PluginTrainer.between

    def dying(self, *args):
        between(self, *args)
        if next(calls) == at:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PluginTrainer, "between", dying)
        run(**arguments, checkpoint_minutes=minutes)


def figures(result: dict) -> dict:
    history = [{k: v for k, v in epoch.items() if "seconds" not in k} for epoch in result["history"]]
    return {
        "history": history,
        "best": result["best_epoch"],
        **{k: result[k] for k in ("best_valid_result", "test_result")},
    }


def weights(result: dict) -> dict:
    return checkpoint.load(result["checkpoint"])["state_dict"]


@pytest.mark.parametrize(
    ("model", "at", "minutes"),
    [
        *(("DiffuRecSys", at, minutes) for at, minutes in [(1, 0), (30, 0), (57, 0), (75, None), (40, None)]),
        *(("BERT4Rec", at, minutes) for at, minutes in [(30, 0), (75, None)]),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(model, at, minutes, workdir, monkeypatch):
    small = {**(OURS if model == "DiffuRecSys" else {**SMALL, "inner_size": 32}), "model": model}
    whole = run(**small, checkpoint_dir="whole")
    interrupted_run(monkeypatch, at, minutes, **small)
    resumed = run(**small, resume=True)
    assert figures(resumed) == figures(whole)
    expected = weights(whole)
    assert all(torch.equal(values, expected[name]) for name, values in weights(resumed).items())
    assert not list(Path("saved").glob("*.state")) and len(list(Path("saved").glob("*.pth"))) == 1


def test_nothing_to_resume_starts_afresh(workdir, caplog):
    caplog.set_level("INFO")
    run(**OURS, resume=True)
    assert "nothing to resume in 'saved'" in caplog.text


def test_another_configuration_is_refused_by_name(workdir, monkeypatch):
    interrupted_run(monkeypatch, 5, 0, **OURS)
    kept = {path: path.read_bytes() for path in Path("saved").iterdir()}
    with pytest.raises(UserError, match=r"another configuration \(learning_rate 0.001, not 0.1\)"):
        run(**OURS, learning_rate=0.1, resume=True)
    assert {path: path.read_bytes() for path in Path("saved").iterdir()} == kept


def test_a_damaged_state_says_so(workdir, monkeypatch):
    interrupted_run(monkeypatch, 5, 0, **OURS)
    (state,) = Path("saved").glob("*.state")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged, cut short"):
        run(**OURS, resume=True)


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_batch_and_says_how_to_go_on(number, code, workdir):
    arguments = flags({**OURS, "epochs": 200, "stopping_step": 300})
    command = [sys.executable, str(ROOT / "run_recbole_diffurec.py"), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "epoch 2/200" not in (line := process.stderr.readline()):
        assert line, "the run ended before its second epoch"
    process.send_signal(number)
    _, error = process.communicate(timeout=200)
    assert process.returncode == code
    assert "interrupted; the same command with --resume resumes from 'saved" in error and "Traceback" not in error
    assert list(Path("saved").glob("*.state")) and not list(Path("saved").glob("*.part"))


@pytest.mark.slow
def test_thirty_kills_at_random_moments(workdir):
    """SIGKILL, from outside, at any moment; each attempt resumes the one before until the run has its result."""
    small = {**OURS, "epochs": 12, "checkpoint_minutes": 0.002}
    whole = run(**small, checkpoint_dir="whole")
    command = [sys.executable, str(ROOT / "run_recbole_diffurec.py"), *flags(small), "--resume", "--result_file=r.json"]
    draw, kills, states = random.Random(1), 0, 0
    while kills < 30:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.5, 9))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            states += bool(list(Path("saved").glob("*.state")))
        else:
            assert process.returncode == 0
            assert figures(json.loads(Path("r.json").read_text())) == figures(whole)
        process.wait()
    done = subprocess.run(command, check=False, capture_output=True)
    assert done.returncode == 0
    resumed = json.loads(Path("r.json").read_text())
    assert figures(resumed) == figures(whole)
    assert all(torch.equal(values, weights(whole)[name]) for name, values in weights(resumed).items())
    print(f"{kills} kills, {states} of them with a state on the disk")


def test_a_loss_that_is_no_number_is_explained(workdir, capsys):
    assert cli.main(flags({**OURS, "learning_rate": 1e9, "init": "normal", "initializer_range": 1e9})) == 2
    error = capsys.readouterr().err
    assert "the loss became" in error and "learning_rate 1e+09" in error and "no epoch had been validated yet" in error
