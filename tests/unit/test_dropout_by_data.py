"""``hidden_dropout_prob: auto``: a probability by how many training rows there are for an item."""

from __future__ import annotations

import logging
import re

import pytest
from conftest import TINY, make_model
from hypothesis import given
from hypothesis import strategies as st

from recbole_diffurec import Recommender, UserError, evaluate, run
from recbole_diffurec.config.layers import experiment
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.models.dropout_by_data import AT_SPARSE_AND_DENSE, dropout_for
from recbole_diffurec.training.prepare import PreparedData, build

AUTO = dict.fromkeys(AT_SPARSE_AND_DENSE, "auto")
NAMES = st.sampled_from(sorted(AUTO))
ROWS = st.floats(1e-3, 1e6)


@given(name=NAMES, rows=ROWS, more=ROWS)
def test_more_rows_never_mean_more_dropout(name, rows, more):
    sparse, dense = AT_SPARSE_AND_DENSE[name]
    assert dense <= dropout_for(name, rows + more) <= dropout_for(name, rows) <= sparse


@pytest.mark.parametrize(
    ("recipe", "rows_an_item"),
    [("amazon-beauty", (198_502 - 3 * 22_363) / 12_101), ("ml-1m", (1_000_209 - 3 * 6_040) / 3_706)],
)
def test_data_with_a_recipe_gets_its_dropout(recipe, rows_an_item):
    found = experiment(f"best/{recipe}")
    assert {name: dropout_for(name, rows_an_item) for name in AUTO} == {name: found[name] for name in AUTO}


def test_it_lies_between_where_data_does():
    assert dropout_for("hidden_dropout_prob", (11 * 250) ** 0.5) == 0.2
    assert dropout_for("embedding_dropout_prob", (11 * 250) ** 0.5) == 0.25


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_the_network_drops_what_the_data_says_and_its_name_stays(name):
    config = RunConfig(name, "ml-100k", {**TINY, **AUTO})
    data = PreparedData(config)
    rows = dataset_of(data.loaders[0])
    network, _ = build(data.config, rows)
    wanted = {name: dropout_for(name, len(rows) / (network.n_items - 1)) for name in AUTO}
    assert 0.1 < wanted["hidden_dropout_prob"] < 0.3
    found = {module.p for module in network.modules() if isinstance(module, Dropout)}
    assert set(wanted.values()) <= found
    assert {name: config.plain()[name] for name in AUTO} == AUTO


def test_a_run_says_what_it_chose_goes_on_and_serves(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "recbole_diffurec"):
        result = run("DiffuRec", "ml-100k", **TINY, **AUTO, checkpoint_dir=str(tmp_path))
    said = [message for message in caplog.messages if "auto is" in message]
    assert len(said) == 1
    assert re.fullmatch(r"hidden_dropout_prob auto is 0\.\d+ and embedding_dropout_prob auto is 0\.\d+: .*", said[0])
    assert {name: result["config"][name] for name in AUTO} == AUTO
    assert evaluate(result["checkpoint"])["test_result"] == result["test_result"]
    recommender = Recommender.load(result["checkpoint"])
    assert len(recommender.recommend([["1", "2"]], k=3)) == 3


def test_a_checkpoint_alone_drops_nothing():
    network = make_model("DiffuRec", **AUTO, attn_dropout_prob=0.0)
    assert {module.p for module in network.modules() if isinstance(module, Dropout)} == {0.0}


@pytest.mark.parametrize("name", sorted(AUTO))
def test_other_words_and_other_models_are_refused(name):
    with pytest.raises(UserError, match=rf"{name} must be a number in \[0, 1\) or auto, got 'much'"):
        RunConfig("DiffuRec", "ml-100k", {name: "much"})
    with pytest.raises(UserError, match=rf"{name} must be a number in \[0, 1\), got 'auto'"):
        RunConfig("ADRec", "ml-100k", {name: "auto"})
