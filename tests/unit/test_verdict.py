"""The verdict of an audit: the rule, and which line decides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_diffurec.experiments import verdict

AS_TRAINED = {"name": "as_trained", "ndcg": 0.05}


def line(name: str, low: float, high: float) -> dict:
    return {"name": name, "ndcg": 0.0, "difference": {"ndcg": {"mean": (low + high) / 2, "low": low, "high": high}}}


@pytest.mark.parametrize(
    ("low", "high", "users", "answer"),
    [
        (-0.02, -0.01, 500, "yes"),
        (-0.02, -0.01, 50, "yes"),
        (0.0, 0.0, 500, "no"),
        (-0.0005, 0.0005, 500, "no"),
        (-0.0005, -0.0001, 500, "no"),  # it costs, and less than the margin of .001
        (0.002, 0.01, 500, "no"),  # it helps
        (0.0, 0.0, 50, "undecided"),
        (-0.02, 0.01, 500, "undecided"),
        (-0.0011, 0.0, 500, "undecided"),
    ],
)
def test_the_rule(low, high, users, answer):
    assert verdict.decide(low, high, 0.05, users) == answer
    found = verdict.verdict([AS_TRAINED, line("factor_0", low, high)], users, 10)
    assert found["answer"] == answer and found["line"] == "factor_0" and "NDCG@10" in found["sentence"]


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 10_000))
def test_one_answer_for_any_interval(low, width, as_trained, users):
    answer = verdict.decide(low, low + width, as_trained, users)
    assert answer in ("yes", "no", "undecided")
    if answer == "yes":
        assert low + width < 0
    if answer == "no":
        assert low >= -0.02 * as_trained and users >= 100


def test_a_model_that_hits_nothing_shows_nothing():
    assert verdict.decide(0.0, 0.0, 0.0, 5000) == "undecided"


def test_the_twin_decides_before_the_network_that_misses_its_input():
    lines = [AS_TRAINED, line("factor_0", -0.03, -0.02), line("one_step", -0.01, 0.01), line("twin", 0.001, 0.004)]
    assert verdict.verdict(lines, 500, 10)["answer"] == "no"
    assert "costs more than it contributes" in verdict.verdict(lines, 500, 10)["sentence"]
    without = verdict.verdict(lines[:3], 500, 10)
    assert without["answer"] == "yes" and "--train_twin" in without["sentence"]
    assert verdict.verdict([AS_TRAINED, lines[2]], 500, 10)["line"] == "one_step"


def test_lines_that_do_not_apply_decide_nothing():
    found = verdict.verdict([AS_TRAINED, {"name": "factor_0", "not_applicable": "it has none"}], 500, 10)
    assert found["answer"] == "undecided" and found["line"] == ""


def test_the_rule_is_told_whole():
    assert "{" not in verdict.rule() and "removing the noised vector" in verdict.rule()
