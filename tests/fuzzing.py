"""What the fuzz works with: a folder with something of every kind that commands read, its damage, and processes."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna  # noqa: F401  imported before the forks
import pandas as pd
import ray.tune.search.optuna  # noqa: F401
from conftest import TINY, flags

import recbole_diffurec.inference.export
import recbole_diffurec.inference.service
import recbole_diffurec.inference.similar
from recbole_diffurec import UserError, cli, export, run
from recbole_diffurec.experiments import audit_figure, cluster, compare, looks, search_figure, trials, tune
from recbole_diffurec.host import catalogue
from recbole_diffurec.host.config import known_parameters
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.prepare import DatasetCache
from recbole_diffurec.training.report import explained

# Seconds of work until a try is interrupted, as by Ctrl-C, and seconds until that, and until it is killed, a failure.
WORK, PATIENCE, END = 15, 45, 120
IDLE = 2.0  # seconds of work, below which a try that ran out of patience has waited for something
MEMORY = 4 << 30  # bytes beyond what this process has
AT_WORK = re.compile(r"serving     http|epoch 14/")  # after which a command is interrupted, as it would go on for long

PACKAGE = Path(recbole_diffurec.__file__).parent
COLUMNS = {
    "inter": ["user_id", "item_id", "rating", "label", "timestamp"],
    "item": ["item_id", "title", "brand", "class", "year"],
    "user": ["user_id", "age"],
    "kg": ["head_id", "relation_id", "tail_id"],
    "link": ["item_id", "entity_id"],
}
SMALL = {**TINY, "epochs": 2, "data_path": "data", "diffusion_steps": 4}
# Values of other kinds, for a place in a file or a parameter.
WRONG = [
    None, True, -1, 0, 2, 10**30, 1.5, float("nan"), float("inf"), "", "../x", "é 日本", [], [[]], [1], {}, {"a": 1},
    "x" * 300,
]  # fmt: skip
CELLS = [
    "",
    "nan",
    "inf",
    "-1",
    "1e400",
    "é 日本",
    '"',
    "'",
    "\t",
    ",",
    "[PAD]",
    "0x10",
    "2024-13-45",
    "x" * 300,
    "\x00",
]


def of_model(model: str, **more: Any) -> dict[str, Any]:
    """Parameters of a run of a second, as far as the model has them."""
    known = known_parameters(catalogue.named(model)[0].name)
    return {name: value for name, value in {**SMALL, **more}.items() if name in known}


def interrupted_run(model: str) -> list[str]:
    """The command of a run that ``make_inputs`` leaves the state of."""
    return ["run", f"--model={model}", "--dataset=small", *flags(of_model(model, epochs=12))]


COMPARED = ["compare", "--models=DiffuRec,Pop", "--dataset=small", *flags(SMALL)]
SEARCHED = [
    "tune", "--model=SASRec", "--dataset=small", "--params_file=space.test", "--num_trials=2",
    *flags(of_model("SASRec")),
]  # fmt: skip


# The folder


def make_inputs(folder: Path) -> Path:
    """Fill ``folder`` with data sets, tables, checkpoints, states, and what is kept of a comparison and a search."""
    _make_data(folder)
    here = os.getcwd()
    os.chdir(folder)
    try:
        titled = {"load_col": {kind: COLUMNS[kind] for kind in ("inter", "item")}}
        models: dict[str, tuple[str, dict[str, Any]]] = {
            "a.pth": ("DiffuRec", {**titled, "use_position": True}),
            "b.pth": ("SASRec", {"inner_size": 16}),
            "c.pth": ("DiffuRecSys", {**titled, "n_layers": 2, "sampling_steps": 2}),
            "d.pth": ("BPR", {}),
        }
        for name, (model, more) in models.items():
            shutil.move(run(model, "small", **of_model(model, **more))["checkpoint"], name)
        shutil.copy("a.pth", "some.state")
        if importlib.util.find_spec("safetensors") is not None:
            export("a.pth", "m.safetensors", "safetensors")
        # In this process, which has imported everything then.
        assert cli.main(COMPARED) == cli.main(["audit", "a.pth", "--samples=2"]) == 0
    finally:
        os.chdir(here)
    ended = carry_out(SEARCHED, folder, work=END)
    assert ended.code == 0, ended.said
    for model in ("SASRec", "DiffuRec"):
        ended = carry_out(interrupted_run(model), folder, until=re.compile("epoch 2/"), work=END)
        assert ended.code == 130, ended.said
    for name in ("log", "log_tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def _make_data(folder: Path) -> None:
    draw = random.Random(0)
    rows = [
        (
            f"u{user}",
            f"i{draw.randint(1, 25)}",
            draw.randint(1, 5),
            draw.randint(0, 1),
            1_600_000_000 + 60 * time + user,
        )
        for user in range(30)
        for time in range(8)
    ]
    small = folder / "data" / "small"
    write_atomic(small, "inter", "user_id:token item_id:token rating:float label:float timestamp:float", rows)
    items = [(f"i{i}", f"The {i}th", f"b{i % 4}", f"c{i % 3} c{i % 5}", 1990 + i) for i in range(1, 26)]
    write_atomic(small, "item", "item_id:token title:token_seq brand:token class:token_seq year:float", items)
    write_atomic(small, "user", "user_id:token age:float", [(f"u{u}", u) for u in range(30)])
    write_atomic(small, "link", "item_id:token entity_id:token", [(f"i{i}", f"e{i}") for i in range(1, 26)])
    triples = [(f"e{i}", f"r{n}", f"v{n}{i % (n + 3)}") for i in range(1, 26) for n in range(2)]
    write_atomic(small, "kg", "head_id:token relation_id:token tail_id:token", triples)
    for part, places in (("train", range(6)), ("valid", [6]), ("test", [7])):
        some = [rows[8 * user + t][:2] + rows[8 * user + t][4:] for user in range(30) for t in places]
        header = "user_id:token item_id:token timestamp:float"
        write_atomic(folder / "data" / "parts", f"{part}.inter", header, some)
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "label", "timestamp"])
    table.to_csv(folder / "table.csv", index=False)
    table.to_csv(folder / "table.tsv", index=False, sep="\t")
    table.to_parquet(folder / "table.parquet")
    table.to_json(folder / "table.jsonl", orient="records", lines=True)
    (folder / "table.csv.gz").write_bytes(gzip.compress((folder / "table.csv").read_bytes()))
    pd.DataFrame(items, columns=COLUMNS["item"]).to_csv(folder / "items.csv", index=False)
    table.head(40).to_parquet(folder / "in.parquet")
    shutil.copy(small / "small.inter", folder / "in.inter")
    (folder / "in.jsonl").write_text('{"user_id": "u1", "items": ["i1", "i2"]}\n{"user_id": "u2", "items": ["i9"]}\n')
    (folder / "in.csv").write_text("user_id,item_id,timestamp\nu1,i1,5\nu1,i2,6\n")
    (folder / "ids.txt").write_text("i1\ni2\n")
    (folder / "users.txt").write_text("u1\nu2\n")
    (folder / "good.yaml").write_text("epochs: 1\nhidden_size: 16\n")
    (folder / "space.test").write_text("learning_rate loguniform -8,-4\nhidden_dropout_prob choice [0.1,0.3]\n")
    (folder / "folder").mkdir()


def write_atomic(folder: Path, ending: str, header: str, rows: Sequence[tuple]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(header.split()), *("\t".join(map(str, row)) for row in rows)]
    (folder / f"{folder.name}.{ending}").write_text("\n".join(lines) + "\n")


# Damage


def damage(draw: random.Random, path: Path) -> str:
    """Change a file; says how."""
    content = bytearray(path.read_bytes())
    hows = ["cut", "flip", "insert", "empty", "twice", "zeros", "gone", "folder", "text"]
    if path.suffix in (".pth", ".state"):  # tables may come through pipes, which are waited for
        hows.append("fifo")
    aimed = {".json": _value_of_json, ".pth": _value_of_checkpoint, ".state": _value_of_checkpoint}
    if path.suffix in aimed and draw.random() < 0.6:
        with contextlib.suppress(UserError, ValueError):
            return aimed[path.suffix](draw, path)
    if path.suffix not in (".pth", ".state", ".npz", ".png", ".parquet", ".gz") and draw.random() < 0.5:
        return _cell(draw, path)
    how = draw.choice(hows)
    if how == "cut" and content:
        del content[draw.randrange(len(content)) :]
    elif how == "flip" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif how == "insert":
        place = draw.randrange(len(content) + 1)
        content[place:place] = draw.choice([b"\x00", b"\xff\xfe", b"\n\n", b"\t", b"{", b"]" * 50, b"nan", b'"', b"\r"])
    elif how in ("empty", "twice", "zeros"):
        content = {"empty": bytearray(), "twice": content * 2, "zeros": bytearray(len(content))}[how]
    elif how == "text":
        content = bytearray(draw.choice([b"[1]\n", b"null\n", b"{}\n", b"a choice [\n", b"x quniform 0,1,1e-320\n"]))
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "fifo":
        os.mkfifo(path)
    elif how != "gone":
        path.write_bytes(content)
    return how


def _cell(draw: random.Random, path: Path) -> str:
    """Another value in the place of one of a text file, or one more or fewer, or another line."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    place = draw.choice([0, draw.randrange(len(lines))])
    separator = max("\t,: ", key=lines[place].count)
    cells = lines[place].split(separator)
    cell, value = draw.randrange(len(cells)), draw.choice(CELLS)
    how = draw.choice(["another", "more", "fewer", "line", "column"])
    if how == "another":
        cells[cell] = value
    elif how == "more":
        cells.insert(cell, value)
    elif how == "fewer":
        del cells[cell]
    lines[place] = separator.join(cells) if how != "line" else value
    if how == "column":
        rows = [line.split(separator) for line in lines]
        for row in rows[1:]:
            row[cell : cell + 1] = [value] if cell < len(row) and row != [""] else []
        lines = [separator.join(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"{how} {value!r} in line {place + 1}, column {cell + 1}"


def _replaced(draw: random.Random, value: Any, at: str = "") -> tuple[Any, str]:
    """``value`` with one part of it of another kind, or gone, and where that is."""
    if isinstance(value, (dict, list)) and value and (not at or draw.random() < 0.7):
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy = dict(value) if isinstance(value, dict) else list(value)
        if draw.random() < 0.1:
            del copy[key]
            return copy, f"{at}/{key} gone"
        copy[key], where = _replaced(draw, value[key], f"{at}/{key}")
        return copy, where
    wrong = draw.choice(WRONG)
    return wrong, f"{at} = {str(wrong)[:20]!r}"


def _value_of_json(draw: random.Random, path: Path) -> str:
    changed, where = _replaced(draw, json.loads(path.read_text()))
    path.write_text(json.dumps(changed))
    return where


def _value_of_checkpoint(draw: random.Random, path: Path) -> str:
    changed, where = _replaced(draw, checkpoint.load(path))
    checkpoint.save(path, changed if isinstance(changed, Mapping) else {"x": changed})
    return where


# Processes


@dataclass
class Ended:
    """How a try ended: the exit code (negative where a signal ended it), what was said, seconds, and of work."""

    code: int
    said: str
    seconds: float
    work: float
    interrupted: bool


def carry_out(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    until: re.Pattern[str] = AT_WORK,
    anew: bool = False,
    figures: bool = True,
    work: float = WORK,
) -> Ended:
    """Run a command in a fork of this process, or in a process that begins ``anew``; without saving ``figures``."""
    said = folder.parent / "said"
    with open(said, "wb") as file:
        pid = os.fork()
        if pid == 0:
            _child(list(words), folder, dict(environment or {}), file.fileno(), anew, figures)
    started, interrupted = time.monotonic(), False
    while True:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - started
        text = said.read_text(errors="replace")
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return Ended(code, text, seconds, used.ru_utime + used.ru_stime, interrupted)
        if not interrupted and (seconds > PATIENCE or _work_of(pid) > work or until.search(text)):
            os.kill(pid, signal.SIGINT)
            interrupted = True
        if seconds > END:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Ended(-signal.SIGKILL, text, seconds, 0.0, interrupted)
        time.sleep(0.02)


def _work_of(pid: int) -> float:
    """Seconds that a process has computed for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(
    words: list[str], folder: Path, environment: dict[str, str], said: int, anew: bool, with_figures: bool
) -> None:
    code = 99
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.dup2(os.open(folder / "in.csv" if (folder / "in.csv").is_file() else os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(sys, name, open(number, "w", closefd=False, errors="backslashreplace"))  # noqa: SIM115
        os.chdir(folder)
        os.environ.update(environment)
        tempfile.tempdir = None
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if anew:
            os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
            os.execv(sys.executable, [sys.executable, "-m", "recbole_diffurec", *words])
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        _stand_in_for_ray()
        _tell_all()
        if not with_figures:
            for module in (looks, audit_figure, search_figure):
                module.write_figure = lambda figure, stem: b"<svg/>"
        code = cli.main(words)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _tell_all() -> None:
    """Tell what a sentence hides: what failed in a run of a comparison, and where, inside RecBole or in our code."""
    reason, tell = compare._reason, cli._tell

    def told(error: Exception) -> str:
        if not isinstance(error, UserError):
            traceback.print_exception(error)
        _tell_cause(error)
        return reason(error)

    def tell_all(error: UserError) -> None:
        _tell_cause(error)
        tell(error)

    compare._reason, cli._tell = told, tell_all


def _tell_cause(error: BaseException) -> None:
    if error.__cause__ is None or not str(error.__cause__):
        return
    frame = traceback.extract_tb(error.__cause__.__traceback__)[-1]
    ours = _is_ours(error.__cause__)
    place = f"{Path(frame.filename).parent.parent.name}/{Path(frame.filename).parent.name}/{Path(frame.filename).name}"
    print(f"{'a mistake of ours' if ours else 'inside'} {place}:{frame.lineno} {error.__cause__!r}", file=sys.stderr)


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised by a line of this package."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(PACKAGE)


def _stand_in_for_ray() -> None:
    """Ray takes ten seconds to start: searches have their trials in this process, and comparisons are refused."""
    from ray import tune as ray_tune

    @contextlib.contextmanager
    def no_cluster(*_: Any, **__: Any) -> Iterator[None]:
        raise UserError("no cluster in these tries")
        yield

    def go(search: Any, resume: bool) -> bool:
        (search.output_dir / "ray").mkdir(exist_ok=True)
        datasets, table = DatasetCache(), search.table()
        table.read()
        with explained(f"preparing data set '{search.dataset}'"):
            datasets.get(search.config)
        for number in range(min(search.planned, 3)):
            sample = {one.name: one.for_ray().sample() for one in search.space}
            trial = SimpleNamespace(trial_id=f"trial{number}", config=sample, error_file=None)
            reports: list[dict[str, Any]] = []

            def report(values: dict[str, Any], trial: Any = trial, reports: list[dict[str, Any]] = reports) -> None:
                reports.append(values)
                table.update(trial, values, "RUNNING")

            ray_tune.report = report
            try:
                trials.run_trial(sample, search.model, search.dataset, search.fixed, datasets)
                table.update(trial, reports[-1], "TERMINATED")
            except Exception as error:  # which Ray Tune keeps in a file
                if not isinstance(error, UserError) and _is_ours(error):
                    raise
                table.update(trial, None, "ERROR")
            table.report(trial.trial_id)
        return True

    cluster.connected = no_cluster
    tune._Search.go = go  # type: ignore[method-assign]
