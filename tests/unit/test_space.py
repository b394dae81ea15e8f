"""Search spaces: RecBole's format, parsed as data, refused with the line's number."""

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from recbole.trainer.hyper_tuning import HyperTuning

from recbole_diffurec import UserError
from recbole_diffurec.experiments.space import Dimension, draw_different, read_space, size_of
from recbole_diffurec.experiments.tune import _parameter
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.models.spec import BUILTIN

SPACE = ROOT / "hyper.test"


def write(tmp_path, text):
    path = tmp_path / "space.test"
    path.write_text(text)
    return path


def test_every_type(tmp_path):
    text = """# a comment
    learning_rate loguniform -8, -4
    n_layers choice [1, 2,4]   # another one

    hidden_dropout_prob uniform 0.0,0.5
    embedding_dropout_prob quniform 0,0.6,0.2
    n_heads\trandint 1,5
    noise_schedule choice ['linear', cosine]
    use_position choice [True,False]"""
    space = {d.name: d for d in read_space(write(tmp_path, text), "DiffuRecSys")}
    assert space["learning_rate"].corners() == pytest.approx([math.exp(-8), math.exp(-4)])
    assert space["n_layers"].values == (1, 2, 4) and space["n_layers"].line == 3
    assert space["embedding_dropout_prob"].corners() == pytest.approx([0, 0.6])
    assert space["n_heads"].corners() == [1, 4]
    assert space["noise_schedule"].values == ("linear", "cosine")
    assert space["use_position"].values == (True, False)


def test_lists_may_stand_in_quotes(tmp_path):
    """RecBole's own form of lists, which its reader takes for texts, and its configuration for lists again."""
    text = """dropout_probs choice ['[0.25,0.5]','[0.2, 0.3]']"""
    (dimension,) = read_space(write(tmp_path, text), "NARM")
    assert dimension.values == ([0.25, 0.5], [0.2, 0.3])
    (plain,) = read_space(write(tmp_path, "dropout_probs choice [[0.25,0.5],[0.2,0.3]]"), "NARM")
    assert plain.values == dimension.values
    (texts,) = read_space(write(tmp_path, "init choice ['[a','b]']"), "DiffuRec")
    assert texts.values == ("[a", "b]")
    assert _parameter(str(dimension.values[1]), dimension) == [0.2, 0.3]  # out of trials.csv


@pytest.mark.parametrize(
    "line,says",
    [
        ("n_layers choice", "write it as 'name type values'"),
        ("n_laiers choice [1]", "unknown parameter 'n_laiers' for model DiffuRecSys: did you mean 'n_layers'?"),
        ("n_layers chioce [1]", "type must be one of choice, uniform"),
        ("n_layers choice 1,2", "choice takes a list"),
        ("n_layers choice []", "choice takes a list"),
        ("n_layers choice [1", "choice takes a list"),
        ("learning_rate uniform 1", "uniform takes 2 numbers"),
        ("learning_rate uniform a,b", "uniform takes 2 numbers"),
        ("learning_rate uniform 0,.inf", "uniform takes 2 numbers"),
        ("learning_rate uniform 0.2,0.1", "first bound of uniform must be below"),
        ("learning_rate quniform 0,1,0", "step of quniform must be above 0"),
        ("learning_rate loguniform 1,1000", "natural logarithms"),
        ("learning_rate loguniform -1e9,1", "natural logarithms"),
        ("learning_rate loguniform -1e-20,0", "natural logarithms"),
        ("learning_rate quniform 0,1,1e-320", "must fit between its bounds"),
        ("learning_rate quniform 0,1,2", "must fit between its bounds"),
        ("learning_rate quniform 0,1,-1", "step of quniform must be above 0"),
        ("learning_rate uniform -1e308,1e308", "must be at most 1e+15"),
        (f"learning_rate uniform 0,1{'0' * 400}", "must be at most 1e+15"),
        (f"n_layers randint 0,1{'0' * 400}", "must be at most 1e+15"),
        ("learning_rate uniform 1,1.00000000000000000001", "first bound of uniform must be below"),
        ("n_layers randint 1.5,2", "randint takes integers"),
        ("seed choice [1]\nseed choice [2]", "line 2: parameter 'seed' has a line already"),
        ("", "names no parameter"),
    ],
)
def test_mistakes_name_the_line(tmp_path, line, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        read_space(write(tmp_path, line), "DiffuRecSys")
    assert "line" in str(error.value) or not line


def test_values_are_never_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('hacked').touch()"
    (dimension,) = read_space(write(tmp_path, f"init choice [{code}]"), "DiffuRecSys")
    assert dimension.values == (code,) and not Path("hacked").exists()


def test_missing_file():
    with pytest.raises(UserError, match="cannot be read"):
        read_space("nothing.test", "DiffuRecSys")


def test_the_space_that_ships_is_valid_at_all_its_ends():
    for dimension in read_space(SPACE, "DiffuRecSys"):
        for value in dimension.corners():
            RunConfig("DiffuRecSys", "ml-100k", {dimension.name: value})


def test_recbole_reads_the_space_that_ships_as_we_do(monkeypatch):
    """RecBole's own parser, with a stand-in for hyperopt that tells what it was called with."""
    told = {kind: lambda name, *values, kind=kind: (kind, values) for kind in ("uniform", "quniform", "loguniform")}
    hp = SimpleNamespace(choice=lambda name, values: ("choice", tuple(values)), **told)
    monkeypatch.setitem(sys.modules, "hyperopt", SimpleNamespace(hp=hp))
    ours = {dimension.name: (dimension.kind, dimension.values) for dimension in read_space(SPACE, "DiffuRecSys")}
    assert HyperTuning._build_space_from_file(SPACE) == ours


@given(st.text(max_size=60))
def test_any_text_is_a_space_or_one_sentence(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("space") / "x.test"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        read_space(path, "SASRec")
    except UserError as error:
        assert "params_file" in str(error)


@pytest.mark.parametrize("path", sorted((ROOT / "properties" / "search").glob("*.test")), ids=lambda path: path.stem)
def test_shipped_spaces_are_of_their_model(path):
    """Each end of each range is a value that the model takes."""
    for dimension in read_space(path, path.stem):
        for value in dimension.corners():
            RunConfig(path.stem, "amazon-beauty", {dimension.name: value})


def test_every_model_has_a_space():
    own = {path.stem for path in (ROOT / "properties" / "search").glob("*.test")}
    assert set(BUILTIN) <= own  # and for DiffuRec's family there is hyper.test


@given(
    st.lists(st.lists(st.one_of(st.integers(), st.booleans(), st.text()), min_size=1), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_different_configurations_are_drawn(values, seed, data):
    space = [Dimension(f"p{place}", "choice", tuple(of), place) for place, of in enumerate(values)]
    n = data.draw(st.integers(0, int(size_of(space))))
    found = draw_different(space, n, seed)
    assert len({repr(one) for one in found}) == len(found) == n and found == draw_different(space, n, seed)
    assert all(one[dimension.name] in dimension.values for one in found for dimension in space)
    for endless in (Dimension("q", "uniform", (0, 1), 9), Dimension("q", "choice", ([1], [2]), 9)):
        assert size_of([*space, endless]) == math.inf
