"""One training in two processes (gloo): the same losses and figures as in one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recbole_diffurec import cli, evaluate
from recbole_diffurec.runtime import checkpoint

TINY = [
    "--epochs=2", "--user_inter_num_interval=[5,30]", "--gpu_id=", "--train_batch_size=501", "--hidden_size=16",
    "--n_layers=2", "--n_heads=2", "--hidden_dropout_prob=0", "--attn_dropout_prob=0",
]  # fmt: skip
OURS = [*TINY, "--embedding_dropout_prob=0", "--sampling_steps=2", "--keyed_noise=True"]
MODELS = {
    "DiffuRecSys": OURS,
    "DiffuRec": [*OURS, "--use_position=True", "--draws=2"],
    "SASRec": [*TINY, "--inner_size=32", "--MAX_ITEM_LIST_LENGTH=8"],
    # Settings without draws. Batches of 2,039 rows leave a single one for the last, which has no negatives.
    "DuoRec": [
        *(argument.replace("=501", "=2039") for argument in TINY), "--inner_size=32", "--MAX_ITEM_LIST_LENGTH=8",
        "--contrast=un", "--lmd=0.5", "--tau=0.3",
    ],
    "CL4SRec": [
        *TINY, "--inner_size=32", "--MAX_ITEM_LIST_LENGTH=8", "--crop_rate=1.0", "--mask_rate=0", "--reorder_rate=0",
        "--sim=cos", "--lmd=0.5", "--tau=0.3",
    ],
    "DCRec": [*OURS, "--diffusion_steps=8", "--draws=2"],
    "DiffRecDNR": [*OURS, "--step_sampler=uniform"],
    "ADRec": [
        *(a.replace("=501", "=131") for a in TINY), "--MAX_ITEM_LIST_LENGTH=8", "--pretrain_epochs=0",
        "--warmup_epochs=1", "--embedding_dropout_prob=0",
    ],
    # The other targets of a batch are those of all processes.
    "DreamRec": [*OURS, "--diffusion_steps=50", "--preference_weight=0.5", "--error=cosine"],
    "MFGAN": [*TINY[:-1], "--discriminator_dropout_prob=0", "--n_generated=1", "--pretrain_epochs=1"],
    "STOSA": [*TINY, "--MAX_ITEM_LIST_LENGTH=8", "--loss_type=CE", "--pvn_weight=0"],
    # 787 windows in batches of 131: the last is of a single one, which both processes get.
    "CausalRec": [
        *(a.replace("=501", "=131") for a in TINY), "--MAX_ITEM_LIST_LENGTH=8", "--rows=sequences",
        "--repeat_bias=True",
    ],
}  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def command(model: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "recbole_diffurec", f"--model={model}", *MODELS[model], *arguments]


def started(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(*arguments: str) -> str:
    process = started(*arguments)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return output + errors


# Of the default suite one of each kind: the family, RecBole's own, a contrast over the batch, two networks.
QUICK = {"DiffuRecSys", "SASRec", "DuoRec", "MFGAN", "CausalRec"}


@pytest.mark.parametrize("model", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MODELS])
def test_two_processes_train_what_one_trains(model, workdir):
    assert cli.main([*command(model)[3:], "--result_file=one.json"]) == 0
    # 4,079 rows in batches of 501: the batches of the processes differ in size, and so do their shares of the users.
    said = finished(*command(model, "--nproc=2", "--result_file=two.json"))
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    assert len(one["history"]) == len(two["history"])
    for epoch, other in zip(one["history"], two["history"]):
        assert other["train_loss"] == pytest.approx(epoch["train_loss"], rel=1e-5)
        assert other["valid_result"] == pytest.approx(epoch["valid_result"], abs=1e-4)
    assert two["test_result"] == pytest.approx(one["test_result"], abs=1e-4)
    # One process writes, and talks.
    assert len(list(Path("saved").iterdir())) == len(list(Path("log").rglob("*.log"))) == 2
    assert len(list(Path("log_tensorboard").iterdir())) == 2
    assert said.count("epoch 2/2") == said.count("HR@10") == 1 and "Warning" not in said
    assert evaluate(two["checkpoint"])["test_result"] == pytest.approx(two["test_result"], abs=1e-6)


def test_a_model_with_draws_of_its_own(workdir):
    """Other draws, and figures that are as near as those of another seed."""
    command = ["--model=VSAN", *TINY, "--inner_size=32"]
    assert cli.main([*command, "--result_file=one.json"]) == 0
    finished(sys.executable, "-m", "recbole_diffurec", *command, "--nproc=2", "--result_file=two.json")
    one, two = (json.loads(Path(name).read_text())["history"] for name in ("one.json", "two.json"))
    for epoch, other in zip(one, two):
        assert other["train_loss"] == pytest.approx(epoch["train_loss"], rel=0.01)


def test_pairs_of_a_batch_are_not_taken_apart(workdir, capfd):
    assert cli.main(["--model=ACVAE", "--nproc=2", "--gpu_id="]) == 2
    said = capfd.readouterr().err.strip()
    assert said.startswith(
        "recbole-diffurec: model 'ACVAE' cannot be trained in several processes, because its contrast"
    )
    assert "\n" not in said  # before any data is read


def test_torchrun_and_evaluate(workdir):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    trained = finished(*torchrun, *command("DiffuRecSys", "--result_file=a.json")[2:])
    assert trained.count("HR@10") == 1
    result = json.loads(Path("a.json").read_text())
    finished(*torchrun, "recbole_diffurec", "evaluate", result["checkpoint"], "--result_file=b.json")
    again = json.loads(Path("b.json").read_text())
    assert again["test_result"] == pytest.approx(result["test_result"], abs=1e-6)


def test_without_keyed_noise_the_processes_draw_differently(workdir):
    """Equal draws in all processes would be one sample's noise used twice."""
    program = Path("draws.py")
    program.write_text(
        "import pathlib, torch\n"
        "from recbole_diffurec import run\n"
        "from recbole_diffurec.runtime import distributed\n"
        "from recbole_diffurec.training.trainer import PluginTrainer\n"
        "fit = PluginTrainer.fit\n"
        "def drawing(self, *args, **kwargs):\n"
        "    pathlib.Path(f'draw{distributed.rank()}').write_text(str(float(torch.randn(()))))\n"
        "    return fit(self, *args, **kwargs)\n"
        "PluginTrainer.fit = drawing\n"
        "run('DiffuRecSys', epochs=1, hidden_size=16, n_layers=1, n_heads=2, user_inter_num_interval='[5,30]',\n"
        "    gpu_id='', show_progress=False, sampling_steps=1)\n"
    )
    finished(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program))
    assert Path("draw0").read_text() != Path("draw1").read_text()


def test_processes_talk_once_a_batch(workdir):
    """Beside what the gradients need: losses, and whether to stop or to keep the state, go together."""
    program = Path("rounds.py")
    program.write_text(
        "import pathlib, torch\n"
        "from recbole_diffurec import run\n"
        "from recbole_diffurec.runtime import distributed\n"
        "from recbole_diffurec.training.trainer import PluginTrainer\n"
        "gather, epoch, rounds = torch.distributed.all_gather, PluginTrainer._train_epoch, []\n"
        "def counted(*args, **kwargs):\n"
        "    rounds.append(1)\n"
        "    return gather(*args, **kwargs)\n"
        "def train(self, data, *args, **kwargs):\n"
        "    rounds.clear()\n"
        "    found = epoch(self, data, *args, **kwargs)\n"
        "    pathlib.Path(f'rounds{distributed.rank()}').write_text(f'{len(rounds)} {len(data)}')\n"
        "    return found\n"
        "torch.distributed.all_gather, PluginTrainer._train_epoch = counted, train\n"
        "run('SASRec', epochs=1, hidden_size=16, inner_size=16, n_layers=1, n_heads=2, gpu_id='',\n"
        "    user_inter_num_interval='[5,30]', show_progress=False)\n"
    )
    finished(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program))
    rounds, batches = map(int, Path("rounds0").read_text().split())
    assert rounds == batches


def test_tensors_freed_late_do_not_abort_a_program(workdir):
    """gloo's threads free these for longer than the rest of the program takes."""
    program = Path("late.py")
    program.write_text(
        "import torch\n"
        "from torch.nn.parallel import DistributedDataParallel\n"
        "from recbole_diffurec.runtime import distributed\n"
        "def many(n):\n"
        "    return [torch.zeros(1) for _ in range(n)]\n"
        "with distributed.process_group(torch.device('cpu')):\n"
        "    model = DistributedDataParallel(torch.nn.Linear(2, 2))\n"
        "    model(torch.ones(2, 2)).sum().backward()\n"
        "    group = torch.distributed.group.WORLD\n"
        "    group.allgather_coalesced([many(100_000), many(100_000)], many(100_000)).wait()\n"
    )
    finished(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program))


# With draws of their own in each process, and DiffRec with losses that each process remembers.
RESUMED = {
    "DiffuRecSys": [
        *(a for a in OURS if a not in ("--keyed_noise=True", "--hidden_dropout_prob=0", "--epochs=2")),
        "--keyed_noise=False", "--hidden_dropout_prob=0.1", "--epochs=6",
    ],
    "DiffRec": ["--epochs=40", "--user_inter_num_interval=[5,30]", "--gpu_id=", "--train_batch_size=64"],
}  # fmt: skip


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=() if m == "DiffuRecSys" else pytest.mark.slow) for m in RESUMED]
)
def test_interrupted_and_resumed(model, workdir):
    arguments = [sys.executable, "-m", "recbole_diffurec", f"--model={model}", "--nproc=2", *RESUMED[model]]
    finished(*arguments, "--result_file=whole.json")
    process = started(*arguments, "--result_file=resumed.json", "--checkpoint_dir=again")
    while not list(Path("again").glob("*.state")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM and errors.count("--resume resumes from") == 1, errors
    assert "Traceback" not in errors
    finished(*arguments, "--result_file=resumed.json", "--checkpoint_dir=again", "--resume")
    whole, resumed = (json.loads(Path(name).read_text()) for name in ("whole.json", "resumed.json"))
    assert [e["train_loss"] for e in resumed["history"]] == [e["train_loss"] for e in whole["history"]]
    weights = [checkpoint.load(result["checkpoint"])["state_dict"] for result in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc=2", "--learning_rat=1"], "unknown parameter 'learning_rat'"),
        (["--nproc=2", "--dataset=nothing"], "nothing"),
        (["--nproc=2", "--model=RecVAE"], "model 'RecVAE' trains in a way of its own"),
    ],
)
def test_mistakes_are_told_once(arguments, message, workdir):
    process = started(sys.executable, "-m", "recbole_diffurec", *arguments)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2 and message in errors
    assert errors.count("recbole-diffurec: ") == 1 and "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc=0"], "0 processes from number 0 of 0 do not fit together"),
        (["--nproc=2", "--world_size=3"], "2 processes from number 0 of 3 do not fit together"),
    ],
)
def test_numbers_that_do_not_fit(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_taken_port(workdir, capsys):
    before = dict(os.environ)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["--nproc=2", "--world_size=4", "--ip=127.0.0.1", f"--port={port}"]) == 2
    waiting, error = capsys.readouterr().err.splitlines()
    assert "waiting up to 15 minutes" in waiting and f"cannot be connected over '127.0.0.1' port {port}" in error
    assert dict(os.environ) == before, "what comes after has its own threads"


def test_other_commands_refuse_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29512")
    assert cli.main(["compare", "--models=SASRec"]) == 2
    assert "'recbole-diffurec compare' works in one process" in capsys.readouterr().err
