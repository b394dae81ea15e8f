"""Parameters that name columns and files: they act, or are refused with what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_diffurec import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import dataset_class
from recbole_diffurec.training.prepare import training_histories

INTER = ["user_id", "item_id", "timestamp"]
EXISTING = "which is no column of"


@pytest.fixture
def given(workdir: Path) -> dict[str, Any]:
    """Parameters of a data set whose interactions have ratings, and whose items have brands."""
    folder = workdir / "shop"
    folder.mkdir()
    rows = [f"u{user}\ti{(user + place) % 6}\t{place % 5}\t{place}" for user in range(6) for place in range(5)]
    columns = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "shop.inter").write_text("\n".join([columns, *rows, ""]), encoding="utf-8")
    items = [f"i{item}\tb{item % 2}\t{item}" for item in range(6)]
    (folder / "shop.item").write_text("\n".join(["item_id:token\tbrand:token\tprice:float", *items, ""]), "utf-8")
    return {"data_path": str(workdir), "gpu_id": "", "show_progress": False}


def made(model: str, given: dict[str, Any], **parameters: Any) -> Any:
    config = RunConfig(model, "shop", {**given, **parameters})
    return dataset_class(config)(config)


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"load_col": {"inter": [*INTER, "nope"]}},
            f"load_col names 'nope', {EXISTING} 'shop.inter': it has item_id, r",
        ),
        ({"load_col": {"inter": INTER, "item": ["item_id", "nope"]}}, f"load_col names 'nope', {EXISTING} 'shop.item'"),
        ({"load_col": {"inter": INTER, "user": ["user_id"]}}, "columns of 'shop.user', which does not exist"),
        ({"load_col": {"inter": INTER, "net": ["a"]}}, "the file 'shop.net', which nothing reads"),
        ({"load_col": {"inter": INTER[:2]}}, "load_col leaves out 'timestamp' of 'shop.inter'"),
        ({"load_col": {"inter": INTER, "item": ["brand"]}}, "load_col leaves out 'item_id' of 'shop.item'"),
        ({"load_col": {"item": ["item_id"]}}, "load_col leaves out 'user_id' of 'shop.inter'"),
        ({"load_col": {}}, "load_col leaves out 'user_id' of 'shop.inter'"),
        ({"load_col": {"inter": "user_id"}}, "load_col must give 'inter' a list of columns"),
        ({"unload_col": {"inter": ["timestamp"]}}, "unload_col names 'timestamp' of the file inter, which this run n"),
        ({"unload_col": {"item": ["nope"]}}, f"unload_col names 'nope', {EXISTING} the file item"),
        ({"unload_col": {"inter": ["rating"]}, "load_col": {"inter": INTER}}, "load_col and unload_col both name"),
        ({"seq_len": {"nope": 3}}, f"seq_len names 'nope', {EXISTING} data set 'shop' that is loaded: these are item_"),
        ({"seq_len": {"brand": 0}}, "seq_len must give 'brand' an integer of at least 1, got 0"),
        ({"normalize_field": ["price"]}, f"normalize_field names 'price', {EXISTING} data set 'shop' that is loaded"),
        ({"alias_of_item_id": ["nope"]}, "alias_of_item_id names 'nope'"),
        ({"alias_of_entity_id": ["nope"]}, "alias_of_entity_id names 'nope'"),
        ({"preload_weight": {"nope": "price"}}, "preload_weight names 'nope'"),
        ({"numerical_features": ["nope"]}, "numerical_features names 'nope'"),
        ({"discretization": {"nope": {"method": "LD"}}}, "discretization names 'nope'"),
        ({"ITEM_LIST_LENGTH_FIELD": "item_id"}, "ITEM_LIST_LENGTH_FIELD and ITEM_ID_FIELD are both 'item_id'"),
        ({"ITEM_ID_FIELD": "user_id"}, "ITEM_ID_FIELD and USER_ID_FIELD are both 'user_id'"),
        ({"LIST_SUFFIX": ""}, "LIST_SUFFIX must be text that tells columns apart, got ''"),
        ({"NEG_PREFIX": None}, "NEG_PREFIX must be text that tells columns apart, got None"),
    ],
)
def test_what_names_nothing_is_refused(
    model: str, parameters: dict[str, Any], message: str, given: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as caught:
        made(model, given, **parameters)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "named"),
    [("GRU4RecF", {}), ("FDSA", {"selected_features": ["brand", "class"]}), ("S3Rec", {"train_stage": "pretrain"})],
)
def test_features_that_a_model_cannot_do_without(model: str, named: dict[str, Any], given: dict[str, Any]) -> None:
    """Those that RecBole's defaults name too, which are of ml-100k."""
    columns = {"load_col": {"inter": INTER, "item": ["item_id", "brand"]}}
    feature = "item_attribute" if model == "S3Rec" else "selected_features"
    with pytest.raises(UserError, match=rf"^{feature} names 'class', .*: these are brand, item_id"):
        made(model, given, **columns, **named)
    mended = {"item_attribute": "brand"} if model == "S3Rec" else {"selected_features": ["brand"]}
    assert "brand" in made(model, given, **columns, **{**named, **mended}).field2id_token


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_what_is_there_acts(model: str, given: dict[str, Any]) -> None:
    def loaded(**parameters: Any) -> set[str]:
        return {*made(model, given, **parameters).field2type} & {"rating", "brand", "price"}

    assert loaded() == set()
    assert loaded(load_col={"inter": INTER, "item": ["item_id", "price"]}) == {"price"}
    assert loaded(load_col={"inter": "*"}) == {"rating"}
    assert loaded(load_col=None) == {"rating", "brand", "price"}
    assert loaded(unload_col={"inter": ["rating"]}) == {"brand", "price"}
    normal = made(model, given, load_col={"inter": INTER, "item": ["item_id", "price"]}, normalize_field=["price"])
    assert float(normal.item_feat["price"].max()) == 1


def test_columns_that_defaults_name_may_be_missing_in_an_evaluation_too(given: dict[str, Any]) -> None:
    """Its configuration has them as if they were given."""
    lines = Path("shop/shop.inter").read_text(encoding="utf-8").splitlines()
    rows = ["\t".join(line.split("\t")[:2]) for line in lines]
    Path("shop/shop.inter").write_text("\n".join([*rows, ""]), encoding="utf-8")
    without_times = {**given, "eval_args": {"order": "RO", "split": {"RS": [0.8, 0.1, 0.1]}}}
    again = RunConfig("BPR", "shop", RunConfig("BPR", "shop", without_times).plain())
    assert set(dataset_class(again)(again).field2type) == {"user_id", "item_id"}


@pytest.mark.parametrize("twice", ["i2\tb0\t7", "i2\tb0\t2"], ids=["other features", "the same"])
def test_an_item_that_comes_twice_would_shift_the_features_of_others(twice: str, given: dict[str, Any]) -> None:
    columns = {"inter": INTER, "item": ["item_id", "price"]}
    prices = made("SASRec", given, load_col=columns)
    assert prices.item_feat["price"][prices.token2id("item_id", "i5")] == 5 and len(prices.item_feat) == 7
    with open("shop/shop.item", "a", encoding="utf-8") as file:
        file.write(twice + "\n")
    with pytest.raises(UserError, match=r"shop.item' line 8 has 'i2' in 'item_id' again, which line 4 has already"):
        made("SASRec", given, load_col=columns)


def test_weights_for_ids_that_a_model_does_not_have(given: dict[str, Any]) -> None:
    Path("shop/shop.rel").write_text("rel_id:token\trel_emb:float_seq\nr0\t1 2\n", encoding="utf-8")
    columns = {"inter": INTER, "rel": ["rel_id", "rel_emb"]}
    graph = {"additional_feat_suffix": ["rel"], "alias_of_relation_id": ["rel_id"], "load_col": columns}
    with pytest.raises(UserError, match="preload_weight names 'rel_id', of which model SASRec has no ids"):
        made("SASRec", given, preload_weight={"rel_id": "rel_emb"}, **graph)


def test_the_encoding_is_that_of_headers_too(given: dict[str, Any]) -> None:
    """Columns are looked for before anything is read, and UTF-16 begins with a mark."""
    columns = {"inter": INTER, "item": ["item_id", "brand"]}
    with pytest.raises(UserError, match="is not utf-16 text"):
        made("SASRec", given, load_col=columns, encoding="utf-16")


def test_histories_of_data_that_recbole_cannot_prepare(given: dict[str, Any]) -> None:
    config = RunConfig("SASRec", "shop", {**given, "additional_feat_suffix": ["nothing"]})
    with pytest.raises(UserError, match=r"^preparing data set 'shop' failed inside RecBole \(ValueError"):
        list(training_histories(config))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("normalize_field", 1.5, "a list of names (or empty)"),
        ("alias_of_user_id", "friend", "a list of names (or empty)"),
        ("unused_col", ["price"], "a mapping (or empty)"),
        ("normalize_all", "price", "True or False (or empty)"),
        ("transform", "user_defined", "one of mask_itemseq, inverse_itemseq, crop_itemseq, reorder_itemseq (or empty)"),
    ],
)
def test_parameters_whose_default_tells_no_kind(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(UserError) as told:
        RunConfig("SASRec", "shop", {name: value, "gpu_id": ""})
    assert str(told.value) == f"{name} must be {allowed}, got {value!r}"
