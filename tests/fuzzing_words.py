"""Command lines, files of settings and search spaces for the fuzz: sound ones, with some of their parts changed."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from conftest import flags
from fuzzing import COLUMNS, COMPARED, SEARCHED, WRONG, interrupted_run, of_model

from recbole_diffurec.cli.parsers import PARSERS
from recbole_diffurec.host import catalogue
from recbole_diffurec.host.config import RunConfig, known_parameters
from recbole_diffurec.models import spec as register

VALUES = [
    "", "0", "-1", "1", "2", "3", "1e-3", "0.5", "nan", "inf", "-inf", ".nan", ".inf", "1e400", "10" * 30,
    "1000000001", "True", "none", "~", "[5,10]", "[]", "[5, 10]", "[[1]]", "[null]", "[nan]", "{}", "{a: 1}",
    "{1: a}", "{mode: uni100}", "{split: {RS: [0.8,0.1,0.1]}}", "{a: [}", "!!python/object:x", "!!binary x", "'",
    '"', "é 日本", "x" * 300, ".", "a.pth", "folder", "in.jsonl", "/dev/null", "/proc/x", "NDCG@10", "uni-1",
    "2024-13-45", "2024-01-05", "0x10", "1_000", "1:30", "*", "&a [*a]", "cpu", "cuda:7", "full", "CE", "BPR",
    "cosine", "[5,inf)", "|", ">-", "a,b", ",", "\udcff", "\u202e", "\t", "a\nb", "user_id", "item_id", "timestamp",
    "rating", "title", "class",
]  # fmt: skip
CHECKPOINTS = ["a.pth", "b.pth", "c.pth", "d.pth", "m.safetensors"]
HISTORIES = [
    "in.jsonl",
    "in.csv",
    "in.parquet",
    "in.inter",
    "data/small/small.inter",
    "table.csv",
    "table.parquet",
    "-",
]
TABLES = ["table.csv", "table.tsv", "table.jsonl", "table.parquet", "table.csv.gz"]
FILES = [
    *CHECKPOINTS, *HISTORIES, *TABLES, "items.csv", "some.state", "ids.txt", "users.txt", "good.yaml", "space.test",
    "none", "folder", "", "/dev/null", "/proc/self/mem",
]  # fmt: skip
OUTPUTS = [
    "out.csv", "out.jsonl", "out.parquet", "out.csv.gz", "out.jsonl.zst", "out", "new/out.csv", "", ".", "-",
    "/dev/full", "/dev/null", "/proc/x/out.csv", "é 日本.csv", "x" * 300 + ".csv", *FILES,
]  # fmt: skip
FOLDERS = ["out", "folder", "a.pth", "", ".", "/proc/x", "é 日本", "data", "saved", "comparison", "/dev/null"]
ENVIRONMENTS = [
    *[{}] * 90, {"WORLD_SIZE": "abc"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "2", "RANK": "7"},
    {"MPLBACKEND": "nonsense"}, {"CUDA_VISIBLE_DEVICES": "x"}, {"OMP_NUM_THREADS": "abc"}, {"HOME": "/none"},
    {"TMPDIR": "/none"}, {"COLUMNS": "0"}, {"COLUMNS": "abc"}, {"RAY_ADDRESS": "127.0.0.1:1"}, {"RAY_ADDRESS": "é"},
    {"LOCAL_RANK": "-1"}, {"RANK": "1"}, {"XDG_CACHE_HOME": "/dev/null"}, {"TZ": "x/y"}, {"LC_ALL": "C"},
    {"NO_COLOR": "1", "TERM": "dumb"}, {"http_proxy": "http://127.0.0.1:1", "https_proxy": "x"},
]  # fmt: skip
MODELS = [
    *["DiffuRec", "DiffuRecSys", "SASRec", "BPR", "Pop", "EASE"] * 3, *register.names(), *catalogue.known_models(),
    *register.variants(),
]  # fmt: skip

Draw = random.Random


def _eval_args(draw: Draw) -> Any:
    mode = draw.choice(
        ["full", "uni5", "uni100", "pop5", "labeled", "uni", "uni-1", "pop0", "full", "x", None, ["full"], 5]
    )
    split = draw.choice(
        [
            {"LS": draw.choice(["valid_and_test", "test_only", "valid_only", "x", None, 1])},
            {
                "RS": draw.choice(
                    [[0.8, 0.1, 0.1], [8, 1, 1], [1, 0, 0], [0.5, 0.5], [0.9, 0, 0.1], [-1, 1, 1], [], "x"]
                )
            },
            {},
            {"LS": "valid_and_test", "RS": [8, 1, 1]},
        ]
    )
    whole = {
        "split": split,
        "group_by": draw.choice(["user", "none", None, "item", 1]),
        "order": draw.choice(["TO", "TO", "RO", "to", None]),
        "mode": draw.choice([mode, {"valid": mode, "test": "full"}, {"valid": mode}]),
    }
    return {name: value for name, value in whole.items() if draw.random() < 0.7}


def _columns(draw: Draw) -> Any:
    kinds = draw.sample([*COLUMNS, "net", "x"], draw.choice([0, 1, 2, 2, 3]))
    some = {k: draw.choice([draw.sample(of, draw.randint(0, len(of))), of, "*", None, "x"]) for k, of in _of(kinds)}
    return {"inter": COLUMNS["inter"], **some} if draw.random() < 0.7 else some


def _of(kinds: list[str]) -> list[tuple[str, list[str]]]:
    return [(kind, COLUMNS.get(kind, ["x"])) for kind in kinds]


_INTERVALS = [
    "[2,inf)",
    "(2,9]",
    "[5,5]",
    "[9,2]",
    "[2,3];[7,9]",
    "5",
    "[a,b]",
    "[100,inf)",
    "[-inf,inf]",
    "",
    None,
    "[2,3",
]
_COLUMN = [*COLUMNS["inter"], *COLUMNS["item"], "age", "x", "item_id_list", "é"]


def _some(*values: Any) -> Callable[[Draw], Any]:
    return lambda draw: draw.choice(values)


def _of_columns(*values: Any) -> Callable[[Draw], Any]:
    """A mapping of columns to such values."""
    return lambda draw: {draw.choice(_COLUMN): draw.choice(values) for _ in range(draw.choice([1, 1, 2]))}


def _listed(*values: Any) -> Callable[[Draw], Any]:
    return lambda draw: draw.choices(values, k=draw.choice([0, 1, 1, 2, 3]))


# What parameters may be that their defaults do not tell, by their names.
NEAR: dict[str, Callable[[Draw], Any]] = {
    "eval_args": _eval_args,
    "load_col": _columns,
    "unload_col": _columns,
    "user_inter_num_interval": _some(*_INTERVALS),
    "item_inter_num_interval": _some(*_INTERVALS),
    "val_interval": _of_columns(*_INTERVALS, ["i1", "i2"], [1, 2], [], 5),
    "threshold": _of_columns(3, 0.5, "3", None, math.nan),
    "benchmark_filename": _some(
        ["train", "valid", "test"], ["train", "test"], ["train", "train", "train"], ["x"] * 3, [1]
    ),
    "topk": _some([1], [5, 10], 3, [100], [5, 5], [10, 5], [0], [-1], [1.0], ["5"], [10**9], [True], [None]),
    "metrics": _listed("Hit", "NDCG", "MRR", "ItemCoverage", "GiniIndex", "AUC", "RMSE", "GAUC", "MAP", "x", 1, None),
    "valid_metric": _some("NDCG@10", "Hit@5", "ndcg@1", "MRR@10", "ItemCoverage@10", "AUC", "NDCG@0", "NDCG", "@", 1),
    "train_neg_sample_args": lambda draw: {
        "distribution": draw.choice(["uniform", "popularity", "none", "x", None]),
        "sample_num": draw.choice([1, 2, 0, -1, "none", 10**9]),
        "alpha": draw.choice([1.0, 0, -1, "none", math.nan]),
        "dynamic": draw.choice([False, True, "x"]),
        "candidate_num": draw.choice([0, 2, -1]),
    },
    "seq_len": _of_columns(3, 0, -1, "x", 10**9),
    "preload_weight": _of_columns("ent_emb", "rating", 1),
    "normalize_field": _listed(*_COLUMN),
    "numerical_features": _listed(*_COLUMN),
    "unused_col": lambda draw: {draw.choice(["inter", "item", "x"]): draw.choice([_COLUMN[:2], ["rating"], "x", []])},
    "discretization": _of_columns(
        {"method": "ED", "bucket": 3}, {"method": "LD"}, {"method": "ED"}, {"method": "x"}, {"bucket": -1}, "ED", None
    ),
    "additional_feat_suffix": _listed("ent", "rel", "kg", "inter", "../x", 1),
    "alias_of_user_id": _listed(*_COLUMN),
    "alias_of_item_id": _listed(*_COLUMN),
    "alias_of_entity_id": _listed(*_COLUMN),
    "field_separator": _some(",", "\t", " ", "", "||", ";", "e", 1),
    "seq_separator": _some(",", "\t", " ", "", "||", ";", "e", 1),
    "encoding": _some("utf-8", "latin-1", "utf-16", "ascii", "x", "idna", "base64", "", None, "\u202e"),
    "rm_dup_inter": _some("first", "last", "x", None, True),
    "learner": _some("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam", "x"),
    "clip_grad_norm": _some({"max_norm": 5}, {"max_norm": 5, "norm_type": 2}, {"x": 1}, {"max_norm": "x"}, {}, 5),
    "loss_type": _some("CE", "BPR", "BCE", "ce", "x"),
    "sampled_softmax": _some(1, 5, 1000, 0, -1, 2.5),
    "transform": _some("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined", "x"),
    "state": _some("INFO", "debug", "critical", "x", None),
    "checkpoint_dir": _some(*FOLDERS),
    "data_path": _some(*FOLDERS, "data/small"),
    "gpu_id": _some("", "0", "0,1", "-1", "x", "7", None, 0),
    "worker": _some(0, 1, -1, 1000000001),
    "epochs": _some(0, 1, 2, 3, 10**12, -1, 1.5),
    "train_batch_size": _some(1, 2, 7, 10**9, 10**12, 0),
    "eval_batch_size": _some(1, 2, 7, 10**9, 10**12, 0),
    "MAX_ITEM_LIST_LENGTH": _some(1, 2, 5, 10**9, 0),
    "expected_counts": _some({5: [1, 2, 3]}, {5: [1]}, {"x": [1, 2, 3]}, {5: "x"}, {}),
    "source_base_urls": _some({"snap": "http://127.0.0.1:1"}, {"snap": 1}, {"x": "http://x"}, {"snap": "file:///x"}),
    "USER_ID_FIELD": _some(*_COLUMN),
    "ITEM_ID_FIELD": _some(*_COLUMN),
    "TIME_FIELD": _some(*_COLUMN),
    "RATING_FIELD": _some(*_COLUMN),
    "LABEL_FIELD": _some(*_COLUMN),
    "LIST_SUFFIX": _some("_list", "_x", "", "_id", 1),
    "compile": _some(False, "x", None, 1),  # True takes a minute
    "embedding_size": _some(1, 8, 0, -1, 10**9, 10**12),
    "hidden_size": _some(2, 8, 3, 0, 10**9, 10**12),
    "n_layers": _some(1, 2, 0, 10**9),
}
_NAMES = sorted(NEAR)


@functools.cache
def _defaults(model: str) -> dict[str, Any]:
    try:
        return RunConfig(model, "small", of_model(model)).final_config_dict
    except ValueError:
        return {}


def near(draw: Draw, value: Any) -> Any:
    """A value like ``value``."""
    if isinstance(value, bool):
        return draw.choice([not value, not value, not value, draw.choice(["auto", None, int(value), [value]])])
    if isinstance(value, int):
        return draw.choice(
            [value + 1, value - 1, -value, value * 2, 0, 1, 2, float(value), value + 0.5, str(value), [value]]
        )
    if isinstance(value, float):
        odd = draw.choice([-value, str(value), math.nan, math.inf, [value]])
        return draw.choice([value * 2, value / 10, 0, 0.0, 1, 1.0, odd])
    if isinstance(value, str):
        return draw.choice([value + "x", value.upper(), value[:-1], "", [value], {value: 1}, None])
    if isinstance(value, list):
        return draw.choice(
            [value[:1], value * 2, [], [value], [*value, draw.choice(WRONG)], dict(enumerate(value)), value * 9]
        )
    if isinstance(value, dict) and value:
        name = draw.choice(list(value))
        rest = {key: other for key, other in value.items() if key != name}
        one = {**value, name: near(draw, value[name])}
        return draw.choice([rest, one, one, one, {**value, "x": 1}, [value]])
    return draw.choice(WRONG)


def value_of(draw: Draw, name: str, model: str) -> Any:
    """A value for a parameter: one that may pass, one like its default, or anything."""
    which = draw.random()
    if name in NEAR and which < 0.7:
        return NEAR[name](draw)
    if which < 0.9 and name in _defaults(model):
        return near(draw, _defaults(model)[name])
    return draw.choice([*WRONG, *VALUES])


def as_text(value: Any) -> str:
    """As a command line has it."""
    if isinstance(value, str):
        return value
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return dumped.removesuffix("\n").removesuffix("\n...")


def parameters(draw: Draw, model: str, count: int) -> dict[str, Any]:
    names = sorted(known_parameters(model)) if model in MODELS else _NAMES
    drawn = [draw.choice(_NAMES if draw.random() < 0.5 else names) for _ in range(count)]
    return {name: value_of(draw, name, model) for name in drawn}


# Files


def settings_file(draw: Draw, model: str, folder: Path) -> str:
    """A YAML file of parameters, which may be damaged or hold what is no parameter."""
    values: Any = parameters(draw, model, draw.choice([1, 1, 2, 3, 5]))
    more = {"model": model, "dataset": "small", "models": [model], "seeds": 2, "experiment": "x", 1: 2, None: 3, "é": 1}
    if draw.random() < 0.2:
        name = draw.choice(list(more))
        values[name] = draw.choice([more[name], draw.choice(WRONG)])
    if draw.random() < 0.05:
        values = draw.choice(WRONG)
    # Not bytes that are no text, which a YAML file cannot hold.
    text = yaml.safe_dump(values, allow_unicode=True).replace("\udcff", "?")
    if draw.random() < 0.1:
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(["\t", "{", "&a ", "*a", "\x00", "- ", "!!x ", ": :", "\x85"]) + text[place:]
    (folder / "fuzz.yaml").write_text(text, encoding="utf-8")
    return "fuzz.yaml"


def space_file(draw: Draw, model: str, folder: Path) -> str:
    """A search space in the form of ``hyper.test``."""
    lines = []
    for name in parameters(draw, model, draw.choice([1, 1, 2, 3])):
        kind = draw.choice(["choice", "choice", "choice", "uniform", "quniform", "loguniform", "randint", "x"])
        if kind == "choice":
            listed = [value_of(draw, name, model) for _ in range(draw.choice([1, 2, 3]))]
            text = as_text(listed) if draw.random() < 0.8 else json.dumps([as_text(value) for value in listed])
        else:
            numbers = ["0", "1", "2", "0.1", "-8", "-4", "1e-320", "1e300", "nan", "x", "10", "100", "[1]", "1e15", ""]
            text = ",".join(draw.choices(numbers, k=3 if kind == "quniform" else draw.choice([1, 2, 2, 2, 2, 3])))
            if draw.random() < 0.5:
                text = {"uniform": "0.1,0.5", "quniform": "0,1,0.25", "loguniform": "-8,-4"}.get(kind, "1,5")
        lines.append(f"{name} {kind} {text}")
    if draw.random() < 0.1:
        lines.append(
            draw.choice(["x", "x y", "# é", "\x00", "learning_rate", "n_layers choice", "learning_rate\tuniform\t0,1"])
        )
    (folder / "fuzz.test").write_text("\n".join(lines).replace("\udcff", "?") + "\n", encoding="utf-8")
    return "fuzz.test"


# Command lines


def command_line(draw: Draw, folder: Path) -> list[str]:
    """A command line: a sound one, with some of its parts replaced, left out or added; its files are in ``folder``."""
    command = draw.choice([*sorted(PARSERS), "run", "run", "recommend", "compare", "tune"])
    words = _WORDS[command](draw, draw.choice(MODELS))
    model = _model_of(words)
    count = draw.choice([0, 0, 1, 1, 1, 1, 2, 2, 3])
    some: list[tuple[str, str | None]] = []
    if command == "prepare" or draw.random() < 0.4:
        some = [_option(draw, command, folder, model) for _ in range(count)]
    else:
        some = [(f"--{name}", as_text(value)) for name, value in parameters(draw, model, count).items()]
    if command in ("run", "compare", "tune") and draw.random() < 0.3:
        some.append(("--config_files", settings_file(draw, model, folder)))
    if command == "tune" and draw.random() < 0.6:
        some.append(("--params_file", space_file(draw, model, folder)))
        fixed = (folder / "fuzz.test").read_text()
        words = [word for word in words if word[2:].partition("=")[0] not in fixed]
    replaced = {name for name, _ in some}
    words = [word for word in words if word.partition("=")[0] not in replaced or draw.random() < 0.02]
    words += [f"{name}={value}" if value is not None else name for name, value in some]
    if draw.random() < 0.03 and words:
        words.pop(draw.randrange(len(words)))
    if draw.random() < 0.03 and words:
        place = draw.randrange(len(words))
        words[place] = words[place].replace("=", draw.choice(["", " ", "==", "_=", "-x="]), 1)
    if draw.random() < 0.03 and words:
        words.append(draw.choice(words))
    return [command, *words]


def _model_of(words: list[str]) -> str:
    """Whose parameters a command line most likely has."""
    named = [word.partition("=")[2] for word in words if word.startswith(("--model=", "--models="))]
    if named:
        name = named[0].split(",")[0].split("@")[0]
        return catalogue.named(name)[0].name if name in MODELS else "DiffuRec"
    return dict(zip(CHECKPOINTS, ("DiffuRec", "SASRec", "DiffuRecSys", "BPR", "DiffuRec"))).get(words[0], "DiffuRec")


def _option(draw: Draw, command: str, folder: Path, model: str) -> tuple[str, str | None]:
    """One of the command's own options with a value, or none where it takes none."""
    actions = PARSERS[command]()._option_string_actions
    left_out = {"--help", "-h", "--version", "--nproc", "--world_size", "--group_offset"}
    if command in ("run", "compare", "tune") and draw.random() < 0.7:  # they are about tables
        left_out |= set(PARSERS["prepare"]()._option_string_actions) - {"--items"}
    name = draw.choice(sorted(actions.keys() - left_out))
    if actions[name].nargs == 0:
        return name, None
    if actions[name].type in (int, float) and draw.random() < 0.8:
        return name, draw.choice(
            ["1", "2", "3", "5", "20", "100", "0", "-1", "0.5", "1000000001", "10000000000000000000000"]
        )
    if name in ("--output", "--result_file"):
        return name, _output(draw)
    if name in ("--input", "--candidates", "--params_file", "--users", "--items"):
        return name, draw.choice([*HISTORIES, "ids.txt", "users.txt", "items.csv", *FILES])
    if name == "--config_files":
        files = [
            settings_file(draw, model, folder),
            *FILES,
            "good.yaml a.pth",
            "good.yaml,good.yaml",
            "'",
            '"good.yaml',
        ]
        return name, draw.choice(files)
    if name == "--output_dir":
        return name, draw.choice(FOLDERS)
    if name in ("--columns", "--user", "--item", "--time", "--rating", "--title"):
        return name, draw.choice([*_COLUMN, "title,year", "title,title", ",", *VALUES])
    return name, draw.choice(VALUES)


def _run(draw: Draw, model: str) -> list[str]:
    if draw.random() < 0.15:
        return [*interrupted_run(draw.choice(["SASRec", "DiffuRec"]))[1:], "--resume"]
    kind = draw.random()
    if kind < 0.15:
        return [f"--model={model}", *flags(of_model(model)), f"--dataset={draw.choice(TABLES)}"]
    if kind < 0.25:
        split = "--benchmark_filename=[train,valid,test]"
        return [f"--model={model}", *flags(of_model(model)), "--dataset=parts", split]
    if kind < 0.3:
        lists = ["--list_models", "--list_experiments", f"--list_parameters={draw.choice([model, *VALUES])}"]
        return [draw.choice(lists)]
    more = {"load_col": {name: COLUMNS[name] for name in draw.sample(list(COLUMNS), 3)}} if draw.random() < 0.3 else {}
    given = {name: as_text(value) for name, value in of_model(model, **more).items()}
    datasets = [*["small"] * 40, "none", "", "é", "../x", "ml-1m", "a.pth", "items.csv"]
    return [f"--model={draw.choice([model] * 9 + ['x'])}", f"--dataset={draw.choice(datasets)}", *flags(given)]


def _compare(draw: Draw, model: str) -> list[str]:
    model = draw.choice([model, "DiffuRec", "DiffuRec"])
    if draw.random() < 0.5:
        return [*COMPARED[1:], *draw.choice([[], [], [], ["--seeds=2"], ["--baseline=Pop"]])]
    labels = [
        model,
        model,
        "Pop",
        "V1",
        f"{model}@learning_rate=0.01",
        "DiffuRec@good.yaml",
        "x",
        "Pop@x",
        "@",
        "Pop@n=1",
    ]
    models = ",".join(draw.choices(labels, k=draw.choice([1, 1, 2])))
    datasets = draw.choice(["small"] * 20 + ["none", "", "small,small", "small,parts", "table.csv", "../x"])
    short = draw.choice([[], [], ["--dry_run"]])
    return [f"--models={models}", f"--dataset={datasets}", *flags(of_model(model)), *short]


def _tune(draw: Draw, model: str) -> list[str]:
    words = SEARCHED[1:]
    if draw.random() < 0.3:
        return [*words, "--resume"]
    more = [f"--search={draw.choice(['random', 'grid', 'optuna', 'x'])}"] if draw.random() < 0.5 else []
    return [*words, f"--output_dir={draw.choice(['search', 'search', 'search', *FOLDERS])}", *more]


def _checkpoint(draw: Draw) -> str:
    return draw.choice(CHECKPOINTS if draw.random() < 0.93 else FILES)


def _output(draw: Draw) -> str:
    return draw.choice(OUTPUTS[:5] if draw.random() < 0.8 else OUTPUTS)


def _recommend(draw: Draw, model: str) -> list[str]:
    words = [_checkpoint(draw), f"--output={_output(draw)}"]
    words += [f"--input={draw.choice(HISTORIES)}"] if draw.random() < 0.5 else []
    options = [
        "--explain", "--exclude_seen", "--k=3", "--samples=3", "--diversity=0.5", "--next=2", "--columns=title",
        "--k=5", "--next=3", "--users=users.txt", "--candidates=ids.txt", "--k=1000", "--samples=1",
    ]  # fmt: skip
    return words + draw.sample(options, draw.choice([0, 1, 2, 3, 4]))


def _similar(draw: Draw, model: str) -> list[str]:
    items = ["i1", "i1,i2", '["i1", "i2"]', "x", "", ",", "[", "[1]", "{}", "i1,i1", "[[1]]", "[null]", *VALUES]
    words = [_checkpoint(draw), f"--items={draw.choice(items[:3] if draw.random() < 0.7 else items)}"]
    words += [f"--output={_output(draw)}"] if draw.random() < 0.4 else []
    return words + draw.sample(["--k=3", "--columns=title", "--k=1000"], draw.choice([0, 1, 2]))


def _export(draw: Draw, model: str) -> list[str]:
    kind = draw.choice([*["safetensors", "npy", "faiss"] * 3, "torch", "onnx", "x"])
    words = [_checkpoint(draw), f"--format={kind}"]
    words += [f"--output={draw.choice(['out', *OUTPUTS])}"] if draw.random() < 0.5 else []
    return words + ([f"--input={draw.choice(HISTORIES)}"] if draw.random() < 0.3 else [])


def _audit(draw: Draw, model: str) -> list[str]:
    words = draw.choices([*CHECKPOINTS, "a.pth", "c.pth", "a.pth", "c.pth"], k=draw.choice([1, 1, 1, 2]))
    options = ["--users=5", "--train_twin", "--sample_seed=1", "--output_dir=out"]
    return [*words, "--samples=2", *draw.sample(options, draw.choice([0, 1, 2]))]


def _prepare(draw: Draw, model: str) -> list[str]:
    words = [draw.choice([*TABLES * 4, *FILES]), f"--data_path={draw.choice(['out', 'out', 'out', 'data', *FOLDERS])}"]
    options = ["--items=items.csv", "--title=title", "--rating=rating", "--min_rating=3", "--name=small", "--overwrite"]
    return words + draw.sample(options, draw.choice([0, 1, 2, 3]))


_WORDS: dict[str, Callable[[Draw, str], list[str]]] = {
    "run": _run,
    "compare": _compare,
    "tune": _tune,
    "recommend": _recommend,
    "similar": _similar,
    "export": _export,
    "audit": _audit,
    "prepare": _prepare,
    "evaluate": lambda draw, model: [_checkpoint(draw) for _ in range(draw.choice([1, 1, 1, 2]))],
    "serve": lambda draw, model: [_checkpoint(draw), "--port=0"],
}
