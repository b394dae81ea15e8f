"""Environments of several processes that make no sense, and processes that nobody joins."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from recbole_diffurec import UserError, cli
from recbole_diffurec.runtime import distributed, ranks

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SOUND = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29400"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logging.getLogger("recbole_diffurec"), "handlers", [])
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in NAMES if name != "MASTER_ADDR" for value in ("abc", "-1", "1.5", "9" * 20, "²")),
        ("WORLD_SIZE", "0"),
        ("RANK", "2"),
        ("LOCAL_RANK", "2"),
        ("LOCAL_WORLD_SIZE", "0"),
        ("LOCAL_WORLD_SIZE", "3"),
        ("MASTER_PORT", "65536"),
    ],
)
def test_numbers_that_are_none(name: str, value: str, environment: pytest.MonkeyPatch, capsys) -> None:
    for other, sound in {**SOUND, name: value}.items():
        environment.setenv(other, sound)
    assert cli.main(["run", "--epochs=1"]) == 2
    assert f"environment variable {name} must be an integer from" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_what_is_not_set(name: str, environment: pytest.MonkeyPatch, capsys) -> None:
    for other, sound in {**SOUND, name: ""}.items():
        environment.setenv(other, sound)
    assert cli.main(["run", "--epochs=1"]) == 2
    assert f"WORLD_SIZE says 2 processes, and {name} is not set" in capsys.readouterr().err


def test_an_empty_size_is_none(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORLD_SIZE", "")
    environment.setenv("RANK", "abc")  # of somebody else
    ranks.check()
    assert ranks.world_size() == 1


def test_processes_that_nobody_joins(environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for other, sound in {**SOUND, "RANK": "0", "MASTER_PORT": "0"}.items():
        environment.setenv(other, sound)
    environment.setattr(distributed, "RENDEZVOUS_SECONDS", 1)
    caplog.set_level(logging.INFO, "recbole_diffurec")
    started = time.monotonic()
    says = pytest.raises(UserError, match="not all came to localhost port 0 within")
    with says as caught, distributed.process_group(torch.device("cpu")):
        raise AssertionError("connected")
    assert "\n" not in str(caught.value) and time.monotonic() - started < 30
    assert "waiting up to" in caplog.text and "for 1 processes" in caplog.text


@pytest.mark.parametrize("argument", ["--rendezvous_minutes=0", "--rendezvous_minutes=nan", "--port=0", "--nproc=9999"])
def test_a_launch_that_makes_no_sense(argument: str, environment: pytest.MonkeyPatch, capsys) -> None:
    assert cli.main(["run", "--nproc=2", argument]) == 2
    assert "must be" in capsys.readouterr().err


def test_machines_that_do_not_come(environment: pytest.MonkeyPatch, capsys) -> None:
    started = time.monotonic()
    assert cli.main(["run", "--world_size=3", "--port=29431", "--rendezvous_minutes=0.02"]) == 2
    errors = capsys.readouterr().err
    assert "for 2 processes of other machines" in errors and "cannot be connected" in errors
    assert time.monotonic() - started < 60
