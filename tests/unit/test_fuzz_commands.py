"""All commands with random arguments, damaged inputs and odd surroundings: they work, or say in one sentence why not.

Each try is a process of its own, forked from this one so that torch is imported once, with limits of time and memory.
``FUZZ_TRIES`` is the number of tries and ``FUZZ_SEED`` the first one's seed; a failure names its seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, flags

import recbole_diffurec.experiments.compare
import recbole_diffurec.experiments.tune
import recbole_diffurec.inference.export
import recbole_diffurec.inference.service  # noqa: F401  imported before the forks
from recbole_diffurec import UserError, cli, export, run
from recbole_diffurec.cli.parsers import PARSERS
from recbole_diffurec.experiments import cluster
from recbole_diffurec.host.config import known_parameters

TRIES, SEED = int(os.environ.get("FUZZ_TRIES", "300")), int(os.environ.get("FUZZ_SEED", "0"))
# Seconds until a try is interrupted, as by Ctrl-C, and until it is killed, which is a failure.
PATIENCE, END = 12, 60
MEMORY = 4 << 30  # bytes beyond what this process has
CODES = {0, 1, 2, 130}  # 1: some runs of a comparison failed

VALUES = [
    "", "0", "-1", "1", "3", "1e-3", "0.5", "nan", "inf", "-inf", "1e400", "10" * 30, "1000000001", "True", "none",
    "[5,10]", "[]", "[5, 10]", "{}", "{mode: uni100}", "{split: {RS: [0.8,0.1,0.1]}}", "{a: [}", "!!python/object:x",
    "'", "\"", "é 日本", "x" * 300, ".", "a.pth", "folder", "in.jsonl", "/dev/null", "NDCG@10", "uni-1", "2024-13-45",
    "0x10", "1_000", "*", "&a [*a]", "cpu", "cuda:7", "full", "CE", "BPR", "cosine", "[5,inf)",
]  # fmt: skip
MODELS = ["a.pth", "b.pth", "m.safetensors", "some.state"]
FILES = [*MODELS, "in.jsonl", "in.csv", "ids.txt", "good.yaml", "space.test", "none", "folder"]
OUTPUTS = ["out.csv", "out.jsonl", "out.parquet", "out", "new/out.csv", "", ".", "/dev/full", *FILES]
ENVIRONMENTS = [
    {}, {}, {}, {"WORLD_SIZE": "abc"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "2", "RANK": "7"}, {"MPLBACKEND": "nonsense"},
    {"CUDA_VISIBLE_DEVICES": "x"}, {"OMP_NUM_THREADS": "abc"}, {"HOME": "/none"}, {"TMPDIR": "/none"},
]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something of every kind that a command reads."""
    folder = tmp_path_factory.mktemp("inputs")
    draw = random.Random(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{user}\ti{draw.randint(1, 25)}\t{user + time}" for user in range(30) for time in range(8)]
    (folder / "data" / "small").mkdir(parents=True)
    (folder / "data" / "small" / "small.inter").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, model in (("a.pth", "DiffuRec"), ("b.pth", "SASRec")):
            more = {} if model == "DiffuRec" else {"inner_size": 16}
            made = run(model, "small", **{**TINY, **more, "data_path": "data"})
            shutil.move(made["checkpoint"], name)
    for name in ("log", "saved", "log_tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if importlib.util.find_spec("safetensors") is None:
        shutil.copy(folder / "a.pth", folder / "m.safetensors")
    else:
        export(folder / "a.pth", folder / "m.safetensors", "safetensors")
    shutil.copy(folder / "a.pth", folder / "some.state")
    (folder / "in.jsonl").write_text('{"user_id": "u1", "items": ["i1", "i2"]}\n{"user_id": "u2", "items": ["i9"]}\n')
    (folder / "in.csv").write_text("user_id,item_id,timestamp\nu1,i1,5\nu1,i2,6\n")
    (folder / "ids.txt").write_text("i1\ni2\n")
    (folder / "good.yaml").write_text("epochs: 1\nhidden_size: 16\n")
    (folder / "space.test").write_text("learning_rate loguniform -8,-4\nn_layers choice [1,2]\n")
    (folder / "folder").mkdir()
    return folder


def arguments(draw: random.Random) -> list[str]:
    """A command line: a sound one, with some of its parts replaced, left out or added."""
    command = draw.choice(sorted(PARSERS))
    base = {**TINY, "epochs": 2, "data_path": "data"}
    subject = [f"--dataset={draw.choice(['small'] * 5 + ['none', '', 'é', '../x'])}"]
    words = {
        "run": [f"--model={draw.choice(['DiffuRec', 'SASRec', 'BPR', 'Pop', 'x'])}", *subject, *flags(base)],
        "evaluate": draw.choices(MODELS, k=draw.choice([1, 1, 1, 2])),
        "recommend": [draw.choice(MODELS), f"--output={draw.choice(OUTPUTS)}"],
        "export": [draw.choice(MODELS), f"--format={draw.choice(['safetensors', 'safetensors', 'faiss', 'x'])}"],
        "compare": [f"--models={draw.choice(['DiffuRec', 'Pop', 'Pop,BPR', 'x', ''])}", *subject, *flags(base)],
        "tune": ["--model=DiffuRec", *subject, f"--params_file={draw.choice(['space.test', *FILES])}", *flags(base)],
        "serve": [draw.choice(MODELS), "--port=0"],
        "prepare": [draw.choice(["in.csv", *FILES]), "--name=made", "--data_path=made"],
        "similar": [draw.choice(MODELS), f"--items={draw.choice(['i1', 'i1,i2', 'none'])}"],
        "audit": [draw.choice(MODELS), "--users=5", "--samples=2", "--data_path=data"],
    }[command]
    own = sorted(PARSERS[command]().own - {"--help", "-h", "--nproc", "--world_size", "--group_offset"})
    for _ in range(draw.choice([0, 0, 1, 1, 2, 3])):
        name = draw.choice([*own, *(f"--{name}" for name in sorted(known_parameters("DiffuRec")))])
        if draw.random() < 0.1:
            place = draw.randrange(2, len(name) + 1)
            name = name[:place] + draw.choice("_x=") + name[place:]
        if name.startswith("--output") or name == "--result_file":
            words.append(f"{name}={draw.choice(OUTPUTS)}")
        elif name in ("--input", "--candidates", "--config_files", "--params_file", "--results", "--items"):
            words.append(f"{name}={draw.choice(FILES)}")
        else:
            words.append(f"{name}={draw.choice(VALUES)}")
    if draw.random() < 0.1:
        words.pop(draw.randrange(len(words)))
    return [command, *words]


def damage(draw: random.Random, folder: Path) -> str:
    """Change one of the files; says which and how."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    how = draw.choice(["cut", "flip", "insert", "empty", "twice", "zeros", "gone", "folder", "text"])
    if how == "cut":
        del content[draw.randrange(len(content)) :]
    elif how == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif how == "insert":
        place = draw.randrange(len(content))
        content[place:place] = draw.choice([b"\x00", b"\xff\xfe", b"\n\n", b"\t", b"{", b"]" * 50, b"nan", b'"'])
    elif how in ("empty", "twice", "zeros"):
        content = {"empty": bytearray(), "twice": content * 2, "zeros": bytearray(len(content))}[how]
    elif how == "text":
        content = bytearray(draw.choice([b"[1]\n", b"null\n", b"{}\n", b"a choice [\n", b"x quniform 0,1,1e-320\n"]))
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes(content)
    return f"{how} {path.relative_to(folder)}"


def contents(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@contextlib.contextmanager
def no_cluster(*_: Any, **__: Any) -> Iterator[None]:
    """Ray takes ten seconds to start; what is checked before it is what these tries are about."""
    raise UserError("no cluster in these tries")
    yield


def carry_out(words: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code, negative where a signal ended it, and what was said."""
    said = folder.parent / "said"
    with open(said, "wb") as file:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
                os.chdir(folder)
                os.environ.update(environment)
                size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
                signal.signal(signal.SIGINT, signal.default_int_handler)
                cluster.connected = no_cluster
                code = cli.main(words)
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    started, stopped = time.monotonic(), False
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")
        if time.monotonic() - started > PATIENCE and not stopped:
            os.kill(pid, signal.SIGINT)
            stopped = True
        if time.monotonic() - started > END:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -signal.SIGKILL, said.read_text(errors="replace")
        time.sleep(0.02)


def attempt(seed: int, inputs: Path, place: Path) -> tuple[str, str]:
    """One try: its outcome, and what is wrong with it or nothing."""
    draw = random.Random(seed)
    folder = place / "work"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder)
    words = arguments(draw)
    damaged = damage(draw, folder) if draw.random() < 0.5 else "nothing"
    environment = draw.choice(ENVIRONMENTS)
    before = contents(folder)
    beside = sorted(path.name for path in place.iterdir())
    code, said = carry_out(words, folder, environment)
    after = contents(folder)
    wrong = []
    if code not in CODES:
        wrong.append(f"exit code {code}")
    if "Traceback (most recent call last)" in said:
        wrong.append("a traceback")
    outputs = {word.partition("=")[2] for word in words if word.startswith(("--output=", "--result_file="))}
    read = {word.rpartition("=")[2] for word in words if not word.startswith(("--output=", "--result_file="))}
    replaceable = {name for name in outputs - read if not name.endswith((".pth", ".state"))}
    lost = sorted(name for name in before.keys() - replaceable if after.get(name) != before[name])
    if lost:
        wrong.append(f"{lost} changed")
    if sorted({*(path.name for path in place.iterdir()), "said"}) != sorted({*beside, "said"}):
        wrong.append("something lies outside")
    if not wrong:
        return f"{words[0]} {code}", ""
    tail = "\n".join(said.splitlines()[-12:])
    context = json.dumps({"words": words, "damaged": damaged, "environment": environment}, ensure_ascii=False)
    return f"{words[0]} failed", f"seed {seed}: {', '.join(wrong)}\n{context}\n{tail}\n"


@pytest.mark.slow
def test_all_commands(inputs: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    outcomes: Counter[str] = Counter()
    failures = []
    until = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "inf"))
    for seed in range(SEED, SEED + TRIES):
        if time.monotonic() > until:
            break
        outcome, wrong = attempt(seed, inputs, place)
        outcomes[outcome] += 1
        failures += [wrong] if wrong else []
        if wrong:
            print(wrong, flush=True)
    print(f"{sum(outcomes.values())} tries, {len(failures)} failures: {dict(sorted(outcomes.items()))}")
    assert not failures, "\n".join(failures)
