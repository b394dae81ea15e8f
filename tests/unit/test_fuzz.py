"""Whatever a file or a configuration holds: it works, or it is refused in one sentence. Never a traceback."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_diffurec import UserError
from recbole_diffurec.config import layers
from recbole_diffurec.host.config import RunConfig, known_parameters
from recbole_diffurec.training.prepare import prepare_data

FAST, WHOLE = 60, 2500  # examples by default, and of the slow run, for each of the two

USERS = st.sampled_from(["u1", "u2", "u3", "00123", "nan", "None", "ü", '"q', "a b", "", "💥", "u,1", "-1", "1e5"])
ITEMS = st.sampled_from([*"abcdefgh", "nan", "007", "7", "", "'x'", "[PAD]", "NA", "é"])
TIMES = st.one_of(
    st.integers(-5, 2000).map(str),
    st.sampled_from(
        ["1386028800", "1386028800000", "nan", "inf", "-inf", "", "soon", "1e400", "0x10", "2020-01-01", "1,5"]
    ),
    st.floats(allow_nan=True).map(str),
)
HEADERS = st.sampled_from(
    ["user_id:token\titem_id:token\ttimestamp:float"] * 12
    + [
        "user_id:token\titem_id:token",
        "user_id\titem_id\ttimestamp",
        "user_id:float\titem_id:token\ttimestamp:float",
        "user_id:token\titem_id:token_seq\ttimestamp:float",
        "item_id:token\tuser_id:token\ttimestamp:float",
        "user_id:token\tuser_id:token\ttimestamp:float",
        "user_id:token,item_id:token,timestamp:float",
        "user_id:token\titem_id:token\ttimestamp:float\trating:float",
        "",
    ]
)


@st.composite
def atomic_files(draw) -> bytes:
    """An atomic file, sound or damaged in one of many ways."""
    n = draw(st.integers(0, 40))
    sound = draw(st.booleans())
    times = st.integers(0, 50).map(str) if sound else TIMES
    rows = ["\t".join([draw(USERS), draw(ITEMS), draw(times)]) for _ in range(n)]
    if rows and draw(st.booleans()):
        rows *= draw(st.integers(1, 3))
    if rows and not sound and draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(rows) - 1))
        rows[place] = draw(
            st.sampled_from(["", "\t", "\t\t\t\t", "one", rows[place] + "\tmore", rows[place][:-1], "\x00"])
        )
    newline = draw(st.sampled_from(["\n"] * 5 + ["\r\n", "\r"]))
    text = newline.join([draw(HEADERS), *rows]) + draw(st.sampled_from(["", newline]))
    encoding = draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1"]))
    content = text.encode(encoding, errors="replace")
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


def try_file(content: bytes, folder: Path, minimum: int) -> str:
    path = folder / "fuzz" / "fuzz.inter"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    interval = f"[{minimum},inf)"
    parameters = {"data_path": str(folder), "gpu_id": "", "show_progress": False, "topk": [1], "valid_metric": "NDCG@1"}
    parameters.update(user_inter_num_interval=interval, item_inter_num_interval=interval, MAX_ITEM_LIST_LENGTH=5)
    try:
        data = prepare_data(RunConfig("DiffuRecSys", "fuzz", parameters))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) > 20
        return "refused"
    for loader in data.loaders:
        for _ in loader:
            break
    return "worked"


@pytest.fixture(scope="module")
def outcomes():
    counts: dict[str, int] = {}
    yield counts
    print(f"\n{counts}")


FILES = given(content=atomic_files(), minimum=st.integers(0, 3))
CHECKS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def check_file(content, minimum, tmp_path_factory, outcomes):
    outcome = try_file(content, tmp_path_factory.mktemp("fuzz"), minimum)
    outcomes[outcome] = outcomes.get(outcome, 0) + 1


@settings(max_examples=FAST, **CHECKS)
@FILES
def test_files(content, minimum, tmp_path_factory, outcomes):
    check_file(content, minimum, tmp_path_factory, outcomes)


@pytest.mark.slow
@settings(max_examples=WHOLE, **CHECKS)
@FILES
def test_many_files(content, minimum, tmp_path_factory, outcomes):
    check_file(content, minimum, tmp_path_factory, outcomes)


NAMES = st.sampled_from(
    sorted(known_parameters("DiffuRecSys") | known_parameters("SASRec") | {"nonsense", "model", ""})
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["[5,inf)", "[", "cosine", "adam", "NDCG@10", "../..", "__import__('os')", "{a: 1}", "!!python/object"]
    ),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def check_configuration(model, values, as_text, folder):
    try:
        if as_text:
            values = {name: layers.parse_value(name, str(value)) for name, value in values.items()}
        else:
            path = folder / "fuzz.yaml"
            path.write_text(yaml.safe_dump(values), encoding="utf-8")
            values = layers.read_yaml(path)
        RunConfig(model, "ml-100k", values)
    except UserError as error:
        assert str(error)


CONFIGURATIONS = given(
    model=st.sampled_from(["DiffuRecSys", "DiffuRec", "SASRec", "BPR"]),
    values=st.dictionaries(NAMES, VALUES, max_size=4),
    as_text=st.booleans(),
)


@settings(max_examples=FAST, **CHECKS)
@CONFIGURATIONS
def test_configurations(model, values, as_text, tmp_path_factory):
    check_configuration(model, values, as_text, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@settings(max_examples=WHOLE, **CHECKS)
@CONFIGURATIONS
def test_many_configurations(model, values, as_text, tmp_path_factory):
    check_configuration(model, values, as_text, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(
    "value", [[], ["a"], [["a"]], {"a": ["b"]}, {"inter": "x"}, {"inter": [["a"]]}, 1.5, "x", None, True]
)
def test_a_value_of_another_kind_in_any_parameter(value):
    """Kinds are checked before anything reads the values."""
    for model in ("BPR", "SASRec"):
        for name in sorted(known_parameters(model)):
            with contextlib.suppress(UserError):
                RunConfig(model, "ml-100k", {name: value})
