"""The file that says what a search was: damaged, it is named before anything starts."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from recbole_diffurec import UserError
from recbole_diffurec.experiments import cluster
from recbole_diffurec.experiments.search_folder import refuse_foreign, same_search

ASKED = {"model": "DiffuRec", "fixed": {"epochs": 1}, "space": []}


@pytest.mark.parametrize(
    "content", [b"", b'{"model": "Di', b"[1]", b"null", b'{"model": 1}', b'{"fixed": []}', b"\xff", b"[" * 100_000]
)
def test_damage(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"search\.json' ") as caught:
        same_search(path, ASKED, resume=True)
    assert "\n" not in str(caught.value) and path.read_bytes() == content


def test_thesame_search_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    same_search(path, ASKED, resume=False)
    same_search(path, ASKED, resume=True)
    assert json.loads(path.read_text()) == ASKED
    with pytest.raises(UserError, match="has another epochs"):
        same_search(path, {**ASKED, "fixed": {"epochs": 2}}, resume=True)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:nonsense", "127.0.0.1:99999999", ":6379",
        "no-such-host.invalid:6379", "ray://no-such-host.invalid", "http://127.0.0.1:1", "é.invalid:1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", [True, False])
def test_a_cluster_that_does_not_answer(
    given: bool, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "" if given else address)
    told = pytest.raises(UserError, match=r"no Ray cluster answers at '.*RAY_ADDRESS")
    with told, cluster.connected(address if given else None, tmp_path / "ray.log"):
        raise AssertionError("connected")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_what_listens_and_is_no_ray_is_not_waited_for(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(UserError, match="no Ray cluster answers at"),
            cluster.connected(address, tmp_path / "ray.log"),
        ):
            raise AssertionError("connected")


@pytest.mark.parametrize("name", [".", "trial", "trial/state.pkl"])
def test_files_that_others_may_write_are_not_opened(name: str, tmp_path: Path) -> None:
    """Ray Tune unpickles them."""
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "state.pkl").touch()
    refuse_foreign(tmp_path)
    (tmp_path / name).chmod(0o777)
    with pytest.raises(UserError, match="every user may write it") as caught:
        refuse_foreign(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_of_others_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "state.pkl").touch()
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(tmp_path / "state.pkl", 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        refuse_foreign(tmp_path)
