"""RecBole works on today's Python stack after ``compat.apply()``, and nothing more than that is changed."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.dataset import dataset as host
from recbole.data.dataset import sequential_dataset as sequential_host

from recbole_diffurec.errors import UserError
from recbole_diffurec.host import compat
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import SequenceDataset
from recbole_diffurec.training.report import explained

ROOT = Path(__file__).resolve().parents[2]

# numpy

ALIASES = {
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}


def names_read() -> dict[str, set[str]]:
    """{module of RecBole: the names among ``ALIASES`` that it reads from numpy}."""
    folder = Path(recbole.__file__).parent
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        module = ".".join(("recbole", *path.relative_to(folder).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
                found.setdefault(module, set()).update({node.attr} & ALIASES.keys())
    return {module: names for module, names in found.items() if names}


def test_modules_that_read_names_without_a_numpy_of_today_are_those_that_are_mended() -> None:
    # The configuration sets the names for everyone in a method that is taken from it.
    assert names_read().keys() - {"recbole.config.configurator", "recbole.trainer.hyper_tuning"} == {
        *compat.NUMPY_READERS
    }


@pytest.mark.parametrize("module", compat.NUMPY_READERS)
def test_names_are_supplied_where_they_are_read(module: str) -> None:
    seen = importlib.import_module(module).np
    for name in names_read()[module]:
        assert getattr(seen, name) is ALIASES[name]
    assert seen.ndarray is np.ndarray and seen.random is np.random


def test_numpy_itself_is_left_alone(tmp_path: Path) -> None:
    code = f"import numpy; names = {list(ALIASES)}; before = [vars(numpy).get(name) for name in names]; "
    code += "import recbole_diffurec, recbole.model.layers; from recbole.config import Config; "
    code += "Config.compatibility_settings(None); assert [vars(numpy).get(name) for name in names] == before"
    in_a_process(code, tmp_path)


def test_recboles_own_configuration_can_be_built(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["test"])
    config = Config(model="SASRec", dataset="ml-100k", config_dict={"train_neg_sample_args": None, "gpu_id": ""})
    assert (config["model"], config["dataset"], config["loss_type"]) == ("SASRec", "ml-100k", "CE")
    ours = Config(model="DiffuRecSys", dataset="ml-100k", config_dict={"gpu_id": ""})
    assert ours["diffusion_steps"] == 32 and ours["metrics"] == ["Hit", "NDCG"]


# apply


def patched() -> dict[str, Any]:
    """What ``apply`` touches of modules that are imported, and of the process."""
    state = {
        f"{module.__name__}.{name}": vars(module).get(name)
        for module in (host, sequential_host)
        for name in ("pd", "len", "np")
    }
    return {
        **state,
        "fill_nan": Dataset._fill_nan,
        "settings": Config.compatibility_settings,
        "filters": list(warnings.filters),
        "finders": list(sys.meta_path),
    }


def test_applying_again_changes_nothing() -> None:
    compat.apply()
    before = patched()
    compat.apply()
    assert patched() == before
    assert before["recbole.data.dataset.dataset.len"] is not None


def test_a_module_that_was_imported_before_is_mended_too(tmp_path: Path) -> None:
    code = "from recbole.data.dataset import dataset; assert 'len' not in vars(dataset); import recbole_diffurec; "
    code += "assert dataset.np.float is not float and 'len' in vars(dataset) and dataset.Dataset._fill_nan.__wrapped__"
    in_a_process(code, tmp_path)


def test_nothing_heavy_is_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    code = "import sys, recbole_diffurec, recbole_diffurec.cli; "
    code += "print({name.partition('.')[0] for name in sys.modules} & {'numpy', 'pandas', 'ray', 'recbole', 'torch'})"
    assert in_a_process(code, tmp_path) == "set()\n"


def test_warnings_are_silenced_while_a_run_lasts_and_no_longer() -> None:
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with compat.quiet():
            for _ in range(2):
                warnings.warn_explicit("gone in the next version", FutureWarning, "trainer.py", 236, "recbole.trainer")
                warnings.warn_explicit("The given NumPy array is not writable", UserWarning, "d.py", 1, "recbole.data")
            warnings.warn_explicit("of somebody else", FutureWarning, "x.py", 1, "somebody.code")
            warnings.warn_explicit("of use", UserWarning, "x.py", 1, "recbole.data")
        warnings.warn_explicit("afterwards", FutureWarning, "trainer.py", 236, "recbole.trainer")
    assert [str(warning.message) for warning in heard] == ["of somebody else", "of use", "afterwards"]
    assert list(warnings.filters) == before


def test_pandas_and_len_of_everyone_else_are_untouched() -> None:
    import builtins

    assert pd.read_csv.__module__.startswith("pandas") and host.pd is not pd
    assert host.pd.DataFrame is pd.DataFrame and host.pd.factorize is pd.factorize
    assert len is builtins.len and len(pd.Series([[1, 2], [3]])) == 2


def test_length_of_a_series_is_that_of_its_elements() -> None:
    series = pd.Series([np.array(["a", "b"]), np.array([]), np.array(["c"])], index=[5, 3, 9])
    for module in (host, sequential_host):
        assert module.len(series).tolist() == [2, 0, 1]
        assert np.cumsum(series.agg(module.len)).tolist() == [2, 2, 3]
        assert [module.len(x) for x in ([1, 2], "abc", {}, np.zeros((4, 2)))] == [2, 3, 0, 4]
        with pytest.raises(TypeError):
            module.len(5)


# Atomic files

INTER = """\
user_id:token	item_id:token	tags:token_seq	weights:float_seq	timestamp:float
nan	00123	x y	0.5 1.5	1700000001
nan	NA	x	2.0	1700000002.25
nan	"7"		4.0	1700000003
NA	00123	y z x	1.0 2.0 3.0	16777217
NA	123	z		16777219
00123	NA	"x y"	1.0	3
00123	null	x	1.0	4
"""
ITEM = """\
item_id:token	class:token_seq	price:float	brand:token
00123	Comedy Drama	1.5	null
NA		3.0	x
"7"	Action		
123	Drama "Action Comedy	4.5	x
null	Comedy	3.0	00
"""
COLUMNS = {
    "inter": ["user_id", "item_id", "tags", "weights", "timestamp"],
    "item": ["item_id", "class", "price", "brand"],
}


def tiny_config(**parameters: Any) -> RunConfig:
    folder = Path("data/tiny")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.inter").write_text(INTER)
    (folder / "tiny.item").write_text(ITEM)
    values = {
        "data_path": "data",
        "gpu_id": "",
        "load_col": COLUMNS,
        "user_inter_num_interval": None,
        "item_inter_num_interval": None,
    }
    return RunConfig("DiffuRecSys", "tiny", {**values, **parameters})


@pytest.fixture
def frames(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """RecBole's data set before it renumbers anything: data frames as they were read."""
    for step in ("_data_processing", "_data_filtering", "_remap_ID_all", "_fill_nan"):
        monkeypatch.setattr(Dataset, step, lambda self: None)
    return Dataset(tiny_config())


def test_identifiers_stay_what_they_are(frames: Dataset) -> None:
    assert frames.inter_feat["user_id"].tolist() == ["nan", "nan", "nan", "NA", "NA", "00123", "00123"]
    assert frames.inter_feat["item_id"].tolist() == ["00123", "NA", '"7"', "00123", "123", "NA", "null"]
    assert frames.item_feat["item_id"].tolist() == ["00123", "NA", '"7"', "123", "null"]
    assert frames.inter_feat["user_id"].dtype == frames.item_feat["item_id"].dtype == np.dtype(object)


def test_quotes_are_ordinary_characters(frames: Dataset) -> None:
    assert frames.inter_feat["tags"][5].tolist() == ['"x', 'y"']
    assert frames.item_feat["class"][3].tolist() == ["Drama", '"Action', "Comedy"]


def test_missing_sequences_are_empty(frames: Dataset) -> None:
    assert [x.tolist() for x in frames.inter_feat["tags"][:4]] == [["x", "y"], ["x"], [], ["y", "z", "x"]]
    assert [x.tolist() for x in frames.inter_feat["weights"][2:5]] == [[4.0], [1.0, 2.0, 3.0], []]
    assert frames.item_feat["class"][1].tolist() == []
    assert frames.field2seqlen == {
        **dict.fromkeys(["user_id", "item_id", "timestamp", "price", "brand"], 1),
        **dict.fromkeys(["tags", "weights", "class"], 3),
    }


def test_only_an_empty_cell_is_a_missing_token(frames: Dataset) -> None:
    brand = frames.item_feat["brand"]
    assert brand.isna().tolist() == [False, False, True, False, False]
    assert brand.tolist()[0] == "null" and brand.tolist()[4] == "00"


def test_times_are_floats_of_full_precision(frames: Dataset) -> None:
    times = frames.inter_feat["timestamp"]
    assert times.dtype == np.float64
    # 16777217 is the first integer that float32 does not have.
    assert times.tolist() == [1700000001, 1700000002.25, 1700000003, 16777217, 16777219, 3, 4]
    assert frames.item_feat["price"].dtype == np.float64 and np.isnan(frames.item_feat["price"][2])


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "null", ""])
def test_words_for_nothing_are_missing_numbers(word: str, workdir: Path) -> None:
    Path("a.item").write_text(f"item_id:token\tprice:float\nnan\t1.5\nNA\t{word}\n")
    dtype: dict[str, Any] = {"price:float": np.float64, "item_id:token": str}
    # Columns come in the order asked for, which RecBole then names; its engine is not used.
    frame = host.pd.read_csv("a.item", usecols=list(dtype), dtype=dtype, delimiter="\t", engine="python")
    assert list(frame) == list(dtype)
    assert frame["item_id:token"].tolist() == ["nan", "NA"]
    assert frame["price:float"].isna().tolist() == [False, True]


@pytest.mark.parametrize("row", ["i1\t2\t3", "i1"])
def test_rows_that_would_shift_columns_are_refused(row: str, workdir: Path) -> None:
    """RecBole's own call takes a first column that has no name for the rows' names."""
    Path("a.item").write_text(f"item_id:token\tprice:float\n{row}\n{row}\n")
    with pytest.raises(UserError, match=r"'a.item' line 2 has . fields where the first line has 2"):
        host.pd.read_csv("a.item", usecols=["item_id:token"], dtype={"item_id:token": str}, delimiter="\t", engine="c")


# RecBole's data sets


def tokens(dataset: Any, field: str, numbers: Any) -> list[str]:
    return [str(dataset.field2id_token[field][n]) for n in numbers]


@pytest.mark.parametrize("kind", [Dataset, SequentialDataset, SequenceDataset])
def test_data_set_with_sequence_columns_is_read(kind: type, workdir: Path) -> None:
    """What pandas 3 broke: each row's sequence, numbered and padded, in .inter and in .item."""
    dataset = kind(tiny_config())
    assert (dataset.user_num, dataset.item_num, dataset.inter_num) == (4, 6, 7)
    rows = {}
    for _, row in dataset.inter_feat.iterrows():
        (user,) = tokens(dataset, "user_id", [row["user_id"]])
        (item,) = tokens(dataset, "item_id", [row["item_id"]])
        rows[user, item] = (tokens(dataset, "tags", row["tags"]), list(row["weights"]))
    assert rows["nan", "00123"] == (["x", "y"], [0.5, 1.5])
    assert rows["nan", '"7"'] == ([], [4.0])
    assert rows["NA", "00123"] == (["y", "z", "x"], [1.0, 2.0, 3.0])
    assert rows["NA", "123"] == (["z"], [])
    assert rows["00123", "NA"] == (['"x', 'y"'], [1.0])
    assert dataset.num("tags") == 6  # padding, x, y, z, "x, y"
    classes = {}
    for number, sequence in zip(dataset.item_feat["item_id"], dataset.item_feat["class"]):
        (item,) = tokens(dataset, "item_id", [number])
        classes[item] = [word for word in tokens(dataset, "class", sequence) if word != "[PAD]"]
    assert classes["00123"] == ["Comedy", "Drama"] and classes["NA"] == []
    assert classes["123"] == ["Drama", '"Action', "Comedy"] and classes["null"] == ["Comedy"]


def test_missing_values_are_filled(workdir: Path) -> None:
    dataset = Dataset(tiny_config())
    items = dataset.item_feat.set_index("item_id")
    price = {str(dataset.field2id_token["item_id"][n]): items.loc[n, "price"] for n in items.index}
    # Of the five prices one is missing, and RecBole adds the padding item: both get the mean of the four.
    assert price == {"[PAD]": 3.0, "00123": 1.5, "NA": 3.0, '"7"': 3.0, "123": 4.5, "null": 3.0}
    brand = {str(dataset.field2id_token["item_id"][n]): items.loc[n, "brand"] for n in items.index}
    assert brand['"7"'] == brand["[PAD]"] == 0 and brand["NA"] == brand["123"] > 0
    assert not dataset.inter_feat["timestamp"].isna().any()


def test_sequence_columns_become_padded_tensors(workdir: Path) -> None:
    dataset = Dataset(tiny_config())
    dataset._change_feat_format()
    number = dataset.token2id("item_id", "00123")
    classes = dataset.item_feat["class"]
    assert classes.shape == (6, 3) and classes.dtype == torch.int64
    assert tokens(dataset, "class", classes[number]) == ["Comedy", "Drama", "[PAD]"]
    assert classes[dataset.token2id("item_id", "NA")].tolist() == [0, 0, 0]
    assert dataset.inter_feat["tags"].shape == dataset.inter_feat["weights"].shape == (7, 3)
    assert torch.equal((dataset.inter_feat["tags"] > 0).sum(1).sort().values, torch.tensor([0, 1, 1, 1, 2, 2, 3]))


@pytest.mark.parametrize("kind", [SequentialDataset, SequenceDataset])
def test_histories_have_sequence_columns_too(kind: type, workdir: Path) -> None:
    dataset = kind(tiny_config(MAX_ITEM_LIST_LENGTH=4))
    dataset._change_feat_format()
    rows = dataset.inter_feat
    history, numbers = rows["tags_list"], rows["item_id_list"]
    assert history.shape == (4, 4, 3) and rows["weights_list"].shape == (4, 4, 3)
    (last,) = [n for n in range(4) if tokens(dataset, "item_id", [rows["item_id"][n]]) == ['"7"']]
    assert tokens(dataset, "item_id", numbers[last][:2]) == ["00123", "NA"] and numbers[last][2:].tolist() == [0, 0]
    words = [tokens(dataset, "tags", line) for line in history[last]]
    empty = ["[PAD]"] * 3
    assert words == [["x", "y", "[PAD]"], ["x", "[PAD]", "[PAD]"], empty, empty]


def test_float_sequences_can_be_normalized(workdir: Path) -> None:
    dataset = Dataset(tiny_config(normalize_field=["weights"]))
    lengths = [len(x) for x in dataset.inter_feat["weights"]]
    assert sorted(lengths) == [0, 1, 1, 1, 1, 2, 3]
    values = np.concatenate(list(dataset.inter_feat["weights"]))
    assert (values.min(), values.max()) == (0.0, 1.0)


# Import


def in_a_process(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "hyperopt", "wandb", "lightgbm", "xgboost", "thop"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import ray
except ModuleNotFoundError:
    print("ray is blocked")

import recbole_diffurec
from recbole.utils import get_model, get_trainer
from recbole.utils.enum_type import ModelType

for name in ("DiffuRecSys", "DiffuRec"):
    found = get_model(name)
    print(found.__module__, found is getattr(recbole_diffurec, name))
print(get_trainer(ModelType.SEQUENTIAL, "DiffuRecSys").__name__)
from recbole_diffurec.host.config import RunConfig
print(RunConfig("DiffuRecSys", "ml-100k")["model"])
"""


def test_import_without_ray_and_the_model_is_recboles(tmp_path: Path) -> None:
    assert in_a_process(BLOCKED, tmp_path).split("\n") == [
        "ray is blocked",
        "recbole_diffurec.models.diffurec True",
        "recbole_diffurec.models.diffurec True",
        "PluginTrainer",
        "DiffuRecSys",
        "",
    ]
    assert list(tmp_path.iterdir()) == []


def test_recboles_models_leave_anomaly_detection_off():
    """RecBole's SINE turns it on when it is imported, and with it every training is twice as slow."""
    code = "import recbole_diffurec, torch; from recbole.utils import get_model; get_model('SASRec'); "
    code += "import recbole.model.sequential_recommender.sine; assert not torch.is_anomaly_enabled()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_recboles_own_deprecations_are_left_out_wherever_its_mistakes_are_explained() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with explained("trying it out"):
            for module in ("recbole.trainer.trainer", "of.the.user"):
                warnings.warn_explicit("old", FutureWarning, "file.py", 1, module)
    assert [str(warning.filename) for warning in seen] == ["file.py"]


# scikit-learn


def test_recboles_metrics_import_scikit_learn_when_one_of_them_is_computed(tmp_path: Path) -> None:
    code = "import sys, recbole_diffurec.training.run, numpy; from recbole.evaluator import metrics; "
    code += "assert not {'sklearn', 'sklearn.metrics', 'scipy.stats'} & sys.modules.keys(); "
    code += "assert metrics.MAE.metric_info(None, numpy.array([1.0, 2.0]), numpy.array([1.5, 4.0])) == 1.25; "
    code += "assert metrics.sk_auc([0, 0.5, 1], [0, 1, 1]) == 0.75; "
    code += "from sklearn.metrics import auc; assert auc is sys.modules['sklearn.metrics'].auc"
    in_a_process(code, tmp_path)


def test_scikit_learn_that_is_imported_already_is_taken_as_it_is(tmp_path: Path) -> None:
    code = "from sklearn.metrics import auc; import recbole_diffurec; from recbole.evaluator import metrics; "
    code += "assert metrics.sk_auc is auc"
    in_a_process(code, tmp_path)
