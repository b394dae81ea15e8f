"""Nothing that a parameter, a checkpoint or a data file holds is executed by RecBole, its own entry points included."""

from __future__ import annotations

import ast
import os
import pickle
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
import yaml

from recbole_diffurec import UserError, cli, evaluate, run
from recbole_diffurec.host import catalogue, guards
from recbole_diffurec.runtime import checkpoint

ROOT = Path(__file__).resolve().parents[2]
MARK = Path("executed")
# Text that a curious reader evaluates.
CODE = f"__import__('pathlib').Path({str(MARK)!r}).touch()"

TINY = {
    "dataset": "tiny", "data_path": ".", "epochs": 1, "topk": [2], "valid_metric": "NDCG@2", "gpu_id": "",
    "show_progress": False, "user_inter_num_interval": None, "item_inter_num_interval": None,
}  # fmt: skip
CONTEXT = {**TINY, "model": "KD_DAGFM", "load_col": {"inter": ["user_id", "item_id", "timestamp", "label"]}}


class Payload:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return MARK.touch, ()


@pytest.fixture(autouse=True)
def tiny(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six users and eight items; a torch that unpickles by default, as before 2.6; no mark afterwards."""
    rows = [f"u{u}\ti{(u + 3 * n) % 8}\t{10 * n}\t1\n" for u in range(6) for n in range(6)]
    Path("tiny").mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float\tlabel:float\n"
    Path("tiny/tiny.inter").write_text(header + "".join(rows))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(sys, "argv", ["test"])
    yield
    assert not MARK.exists()


def test_the_payload_does_what_it_says() -> None:
    torch.save(Payload(), "file.pth")
    torch.load("file.pth")
    assert MARK.exists()
    MARK.unlink()
    eval(CODE)
    assert MARK.exists()
    MARK.unlink()


# KD_DAGFM's teacher


def test_a_teacher_is_a_name() -> None:
    with pytest.raises(UserError, match="teacher must be one of CrossNet, CIN, got"):
        run(**CONTEXT, teacher=CODE)
    with pytest.raises(UserError, match="teacher must be one of"):
        run(**CONTEXT, teacher="DAGFM")


def test_a_teacher_in_a_yaml_file_is_a_name(capsys: pytest.CaptureFixture) -> None:
    Path("evil.yaml").write_text(yaml.safe_dump({**CONTEXT, "teacher": CODE}))
    assert cli.main(["--model=KD_DAGFM", "--dataset=tiny", "--config_files=evil.yaml"]) == 2
    assert "teacher must be one of CrossNet, CIN" in capsys.readouterr().err


@pytest.mark.parametrize("teacher", guards.TEACHERS)
def test_a_checkpoint_cannot_bring_a_teacher(teacher: str) -> None:
    path = run(**CONTEXT, teacher=teacher)["checkpoint"]
    state = checkpoint.load(path)
    state["config"]["teacher"] = CODE
    checkpoint.save(path, state)
    with pytest.raises(UserError, match="teacher must be one of"):
        evaluate(path)


# Files of weights

READERS = {
    "S3Rec": {"train_stage": "finetune", "pre_model_path": "evil.pth"},
    "RaCT": {"train_stage": "finetune", "pre_model_path": "evil.pth"},
    "ConvNCF": {"train_method": "after_pretrain", "pre_model_path": "evil.pth"},
    "NAIS": {"pretrain_path": "evil.pth"},
    "NeuMF": {"use_pretrain": True, "mf_pretrain_path": "evil.pth", "mlp_pretrain_path": "evil.pth"},
    "KD_DAGFM": {**CONTEXT, "phase": "finetuning", "warm_up": "evil.pth"},
}


@pytest.mark.parametrize("model", READERS)
def test_a_file_of_weights_holds_tensors_alone(model: str) -> None:
    torch.save({"state_dict": {"weight": Payload()}}, "evil.pth")
    parameters = {**TINY, **READERS[model], "model": model}
    if model == "S3Rec":
        Path("tiny/tiny.item").write_text("item_id:token\tclass:token_seq\n" + "".join(f"i{i}\ta\n" for i in range(8)))
        parameters["load_col"] = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}
    with pytest.raises(UserError, match=r"'evil\.pth' .* holds more than tensors and plain values"):
        run(**parameters)
    Path("evil.pth").unlink()
    with pytest.raises(UserError, match=r"'evil\.pth' does not exist"):
        run(**parameters)


def test_nothing_else_of_recbole_opens_a_file() -> None:
    """A newer RecBole with one more place fails here rather than in somebody's hands."""
    import recbole

    opening = ("eval(", "exec(", "pickle.load(", "torch.load(", "np.load(", "__import__(")
    found = {}
    for path in Path(recbole.__file__).parent.rglob("*.py"):
        names = [
            ast.unparse(node.func) + "("
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        names = sorted({name for name in names if name in opening})
        if names:
            found[path.stem] = names
    exlib = {"trainer": ["__import__(", "torch.load("]}  # of two names that are written there
    readers = {name.rpartition(".")[2]: ["torch.load("] for name in guards.READERS_OF_TENSORS}
    assert found == {
        **readers,
        **exlib,
        "kd_dagfm": ["eval(", "torch.load("],
        "quick_start": ["torch.load("],
        "ldiffrec": ["np.load("],
        "configurator": ["eval("],
        "hyper_tuning": ["eval("],
        "utils": ["pickle.load("],
    }


@pytest.mark.parametrize("model,name", [("BPR", "forward"), ("Pop", "device")])
def test_a_checkpoint_sets_a_models_own_parameters_alone(model: str, name: str) -> None:
    path = run(**TINY, model=model)["checkpoint"]
    state = checkpoint.load(path)
    state["other_parameter"][name] = 1
    checkpoint.save(path, state)
    with pytest.raises(UserError, match=f"holds {name} for a {model}, which has no such parameter"):
        evaluate(path)
    network = catalogue.model_class(model)
    with pytest.raises(UserError, match=f"holds {name} for a {model}, which has no such parameter"):
        network.load_other_parameter(torch.nn.Module.__new__(network), {name: 1})


# LDiffRec's vectors

CLUSTERS = {**TINY, "model": "LDiffRec", "n_cate": 2, "in_dims": [8], "dims_dnn": [8]}


def test_vectors_of_items_are_read_as_numbers(capsys: pytest.CaptureFixture) -> None:
    np.save("tiny/item_emb.npy", np.random.default_rng(0).normal(size=(8, 4)))
    assert run(**CLUSTERS)["n_items"] == 8
    assert capsys.readouterr().out == ""


def test_vectors_of_items_are_not_unpickled() -> None:
    np.save("tiny/item_emb.npy", np.array([[Payload()]], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"item_emb\.npy' is no \.npy file of numbers"):
        run(**CLUSTERS)
    Path("tiny/item_emb.npy").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"item_emb\.npy' is no \.npy file of numbers"):
        run(**CLUSTERS)


def _save(array: Any) -> Callable[[], None]:
    return lambda: np.save("tiny/item_emb.npy", array)


def _promise_too_much() -> None:
    with open("tiny/item_emb.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**10, 64)})
        file.write(b"1234")


def _name_no_items() -> None:
    _save(np.ones((8, 4)))()
    Path("tiny/item_emb.npy.json").write_text("[" * 100_000)


def _save_several() -> None:
    np.savez("several.npz", a=np.zeros((8, 4)))
    Path("several.npz").rename("tiny/item_emb.npy")


@pytest.mark.parametrize(
    "write,message",
    [
        (lambda: None, "is missing: write it with"),
        (_save(np.zeros((7, 4))), "has 7 rows for 8 items"),
        (_save(np.zeros(8)), "must hold one table of numbers"),
        (_save(np.full((8, 4), np.nan)), "not finite"),
        (_save(np.full((8, 4), "a")), "must hold one table of numbers"),
        (_promise_too_much, "no .npy file of numbers"),
        (lambda: Path("tiny/item_emb.npy").write_bytes(b""), "no .npy file of numbers|cannot be read"),
        (_save_several, "must hold one table of numbers"),
        (_save(np.zeros((8, 0))), "must hold one table of numbers"),
        (lambda: os.mkfifo("tiny/item_emb.npy"), "is no regular file"),
        (_name_no_items, "does not name the items of"),
    ],
)
def test_other_files_of_vectors_are_refused(write: Callable[[], None], message: str) -> None:
    write()
    with pytest.raises(UserError, match=message):
        run(**CLUSTERS)


# RecBole's own entry points


@pytest.mark.parametrize("argument", [True, False])
def test_recboles_configuration_evaluates_no_text(argument: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole.config import Config

    given = {} if argument else {"benchmark_filename": CODE}
    if argument:
        monkeypatch.setattr(sys, "argv", ["test", f"--benchmark_filename={CODE}"])
    config = Config("BPR", "tiny", config_dict={**TINY, **given})
    assert config["benchmark_filename"] == CODE


@pytest.mark.parametrize(
    "text,value",
    [
        ("[5,10]", [5, 10]), ("1e-3", 0.001), ("{'a': [1]}", {"a": [1]}), ("None", None), ("True", True),
        ("true", True), ("uni100", "uni100"), ("[5,inf)", "[5,inf)"), ("NDCG@10", "NDCG@10"), ("max", "max"),
        ("(1, 2)", (1, 2)), ("-3", -3), ("'7'", "7"), ("[" * 10_000, "[" * 10_000),
    ],
)  # fmt: skip
def test_recboles_configuration_reads_literals_as_before(text: str, value: Any) -> None:
    from recbole.config import Config

    assert Config("BPR", "tiny", config_dict={**TINY, "threshold": text})["threshold"] == value


def test_recboles_configuration_reads_plain_yaml(workdir: Path) -> None:
    from recbole.config import Config

    Path("plain.yaml").write_text("learning_rate: 1e-3\nhidden_size: 8\n")
    assert Config("BPR", "tiny", ["plain.yaml"], dict(TINY))["learning_rate"] == 0.001
    Path("evil.yaml").write_text("threshold: !!python/name:os.system\n")
    with pytest.raises(yaml.YAMLError, match="python/name"):
        Config("BPR", "tiny", ["evil.yaml"], dict(TINY))
    # RecBole's numbers are not added to everybody's loader any more.
    assert yaml.load("1e-3", yaml.FullLoader) == "1e-3"


def test_a_search_space_holds_plain_choices() -> None:
    hyperopt = pytest.importorskip("hyperopt")
    from recbole.trainer import HyperTuning

    Path("space").write_text("learning_rate choice [0.1,0.2]\nhidden_sizes choice ['[8,8]','[8]']\n")
    space = HyperTuning._build_space_from_file("space")
    assert hyperopt.pyll.stochastic.sample(space)["learning_rate"] in (0.1, 0.2)
    Path("space").write_text(f"learning_rate choice [{CODE}]\n")
    with pytest.raises(UserError, match="are no list of plain values"):
        HyperTuning._build_space_from_file("space")


@pytest.mark.parametrize(
    "parameters",
    [
        {"dataset_save_path": "evil.pth"},
        {"dataloaders_save_path": "evil.pth"},
        {"checkpoint_dir": "planted"},
    ],
)
def test_recboles_data_is_not_unpickled(parameters: dict[str, str]) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    Path("planted").mkdir()
    for name in ("evil.pth", "planted/tiny-Dataset.pth", "planted/tiny-for-BPR-dataloader.pth"):
        Path(name).write_bytes(pickle.dumps(Payload()))
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    config = Config("BPR", "tiny", config_dict={**TINY, "load_col": columns, **parameters})
    with pytest.raises(UserError, match=r"opening (one|a pickle) runs what it holds"):
        data_preparation(config, create_dataset(config))


def test_recboles_trainer_and_quick_start_open_tensors_alone() -> None:
    pytest.importorskip("ray")
    from recbole.quick_start import load_data_and_model
    from recbole.quick_start.quick_start import load_data_and_model as the_same
    from recbole.trainer import Trainer

    torch.save({"config": Payload()}, "evil.pth")
    assert load_data_and_model is the_same
    for opening in (
        lambda: load_data_and_model("evil.pth"),
        lambda: Trainer.resume_checkpoint(type("Any", (), {"device": "cpu"})(), "evil.pth"),
    ):
        with pytest.raises(UserError, match="holds more than tensors and plain values"):
            opening()


def test_modules_of_others_are_as_they_were() -> None:
    assert torch.load.__module__ == "torch.serialization" and np.load.__module__.startswith("numpy")
    assert pickle.load.__module__ == "_pickle" and os.path.isfile(np.__file__)
