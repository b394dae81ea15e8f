"""The publishers' originals are fetched from a local server that serves small files in their formats."""

from __future__ import annotations

import dataclasses
import http.server
import io
import logging
import os
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pooch
import pytest
import requests

from recbole_diffurec.data import sources
from recbole_diffurec.data.sources import KNOWN_SOURCES, ensure_dataset
from recbole_diffurec.errors import UserError

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
# Neither sorted by user nor by time, so a conversion that reorders rows shows.
BEAUTY_ROWS = [
    ("A39HTATAQ9V7YF", "0205616461", "5.0", "1369699200"),
    ("nan", "0558925278", "3.0", "1355443200"),
    ("A1Z54EM24Y40LL", "NA", "4.5", "1404691200"),
    ("0001", "null", "1.0", "1382572800"),
    ("A39HTATAQ9V7YF", "B000000001", "2.0", "1274227200"),
]
ML_1M_ROWS = [
    ("1", "1193", "5", "978300760"),
    ("1", "661", "3", "978302109"),
    ("6040", "1", "4", "956704056"),
]
COLUMNS = "user_id:token, item_id:token, timestamp:float"


def as_csv(rows: Sequence[tuple[str, ...]]) -> bytes:
    return "".join(",".join(row) + "\n" for row in rows).encode()


def as_inter(rows: Sequence[tuple[str, ...]]) -> str:
    return HEADER + "".join("\t".join(row) + "\n" for row in rows)


def as_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return buffer.getvalue()


BEAUTY_CSV = as_csv(BEAUTY_ROWS)
ML_1M_DAT = "".join("::".join(row) + "\n" for row in ML_1M_ROWS).encode()
ML_1M_ZIP = as_zip({"../evil.txt": b"evil", "ml-1m/README": b"readme", "ml-1m/ratings.dat": ML_1M_DAT})


class Publisher:
    """A web server with files in memory, a log of requests and faults to come, one for each request."""

    def __init__(self) -> None:
        self.files = {
            "/ratings_Beauty.csv": BEAUTY_CSV,
            "/ratings_Toys_and_Games.csv": as_csv([("toy-user", "0000000001", "5.0", "1300000000")]),
            "/ml-1m.zip": ML_1M_ZIP,
        }
        self.requests: list[str] = []
        # A status to answer, or half a body: "cut", "stall", or "unannounced", without its length.
        self.faults: list[int | str] = []
        publisher = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.requests.append(self.path)
                fault = publisher.faults.pop(0) if publisher.faults else None
                content = publisher.files.get(self.path)
                if isinstance(fault, int):
                    self.send_error(fault)
                elif content is None:
                    self.send_error(404)
                else:
                    self.send_response(200)
                    if fault != "unannounced":
                        self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    # Cut behind the first line, where the part received is itself a sound file.
                    self.wfile.write(content[: content.index(b"\n") + 1] if fault else content)
                    if fault == "stall":
                        time.sleep(1.0)  # longer than the timeout that the test sets

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # serve_forever looks for shutdown at this interval, which each test would otherwise wait for.
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.base_urls = {"snap": url, "grouplens": url}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    server = Publisher()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds pooch would have slept between attempts."""
    slept: list[float] = []
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return slept


@pytest.fixture(autouse=True)
def small_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The publishers' counts, as if they published what the local server holds."""
    for name, rows in (("amazon-beauty", len(BEAUTY_ROWS)), ("amazon-toys-games", 1), ("ml-1m", len(ML_1M_ROWS))):
        monkeypatch.setitem(KNOWN_SOURCES, name, dataclasses.replace(KNOWN_SOURCES[name], n_rows=rows))


def fetch(name: str, data_path: Path, server: Publisher) -> Path:
    return ensure_dataset(name, data_path, base_urls=server.base_urls, show_progress=False)


def refusal(name: str, data_path: Path, base_urls: dict[str, str] | None) -> str:
    """The message of the UserError, once it is known to be one line with no other error behind it."""
    with pytest.raises(UserError) as caught:
        ensure_dataset(name, data_path, base_urls=base_urls, show_progress=False)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    message = str(caught.value)
    assert "\n" not in message and ". " not in message
    return message


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_beauty_is_converted_with_every_id_as_it_was(tmp_path: Path, publisher: Publisher) -> None:
    path = fetch("amazon-beauty", tmp_path, publisher)
    assert path == tmp_path / "amazon-beauty" / "amazon-beauty.inter"
    assert path.read_bytes().decode() == as_inter(BEAUTY_ROWS)
    assert files_below(tmp_path) == ["amazon-beauty", "amazon-beauty/amazon-beauty.inter"]


def test_toys_games_is_fetched_from_its_own_file(tmp_path: Path, publisher: Publisher) -> None:
    path = fetch("amazon-toys-games", tmp_path, publisher)
    assert publisher.requests == ["/ratings_Toys_and_Games.csv"]
    assert path.read_text() == as_inter([("toy-user", "0000000001", "5.0", "1300000000")])


def test_ml_1m_is_read_from_its_member_and_nothing_is_extracted(tmp_path: Path, publisher: Publisher) -> None:
    path = fetch("ml-1m", tmp_path / "data", publisher)
    assert path.read_bytes().decode() == as_inter(ML_1M_ROWS)
    assert files_below(tmp_path) == ["data", "data/ml-1m", "data/ml-1m/ml-1m.inter"]


def test_windows_line_ends_and_a_missing_last_one_are_accepted(tmp_path: Path, publisher: Publisher) -> None:
    publisher.files["/ratings_Beauty.csv"] = BEAUTY_CSV.replace(b"\n", b"\r\n").rstrip()
    assert fetch("amazon-beauty", tmp_path, publisher).read_bytes().decode() == as_inter(BEAUTY_ROWS)


def test_new_file_is_as_readable_as_any_other(tmp_path: Path, publisher: Publisher) -> None:
    other = tmp_path / "other"
    other.touch()
    path = fetch("amazon-beauty", tmp_path, publisher)
    assert path.stat().st_mode == other.stat().st_mode


def test_relative_data_path_gives_an_absolute_path(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ensure_dataset("ml-1m", "data/", base_urls=publisher.base_urls, show_progress=False)
    assert path == tmp_path / "data" / "ml-1m" / "ml-1m.inter"
    assert path.exists()


@pytest.mark.parametrize("name", ["amazon-beauty", "my-own.data"])
def test_existing_file_is_returned_without_a_request(name: str, tmp_path: Path, publisher: Publisher) -> None:
    inter = tmp_path / name / f"{name}.inter"
    inter.parent.mkdir()
    inter.write_text("mine")
    assert fetch(name, tmp_path, publisher) == inter
    assert inter.read_text() == "mine"
    assert publisher.requests == []


def test_second_call_makes_no_request(tmp_path: Path, publisher: Publisher) -> None:
    fetch("amazon-beauty", tmp_path, publisher)
    fetch("amazon-beauty", tmp_path, publisher)
    assert publisher.requests == ["/ratings_Beauty.csv"]


def test_original_in_place_is_converted_without_a_request_and_kept(tmp_path: Path, publisher: Publisher) -> None:
    original = tmp_path / "amazon-beauty" / "ratings_Beauty.csv"
    original.parent.mkdir()
    original.write_bytes(BEAUTY_CSV)
    assert fetch("amazon-beauty", tmp_path, publisher).read_text() == as_inter(BEAUTY_ROWS)
    assert publisher.requests == []
    assert original.read_bytes() == BEAUTY_CSV


def test_malformed_original_in_place_is_named_and_kept(tmp_path: Path, publisher: Publisher) -> None:
    original = tmp_path / "amazon-beauty" / "ratings_Beauty.csv"
    original.parent.mkdir()
    original.write_bytes(b"notes of my own\n")
    message = refusal("amazon-beauty", tmp_path, publisher.base_urls)
    assert str(original) in message and "line 1" in message and "delete it" in message
    assert files_below(tmp_path) == ["amazon-beauty", "amazon-beauty/ratings_Beauty.csv"]


@pytest.mark.parametrize("fault", [503, 429, "cut"])
def test_passing_fault_is_retried(fault: int | str, tmp_path: Path, publisher: Publisher) -> None:
    publisher.faults = [fault]
    assert fetch("amazon-beauty", tmp_path, publisher).read_text() == as_inter(BEAUTY_ROWS)
    assert len(publisher.requests) == 2


@pytest.mark.parametrize(("fault", "reason"), [(503, "the server answered 503"), ("cut", "broke off half-way")])
def test_lasting_fault_is_reported_and_leaves_nothing(
    fault: int | str, reason: str, tmp_path: Path, publisher: Publisher, waits: list[float]
) -> None:
    publisher.faults = [fault] * 10
    message = refusal("amazon-beauty", tmp_path / "data", publisher.base_urls)
    assert reason in message and publisher.base_urls["snap"] + "ratings_Beauty.csv" in message
    assert len(publisher.requests) == 4
    assert sum(waits) < 15
    assert files_below(tmp_path) == []


def test_short_body_is_an_error_even_where_urllib3_would_not_mind() -> None:
    # urllib3 1.x has this off, urllib3 2 on; the test above sees a difference only with the former.
    response = requests.Response()
    response.raw = SimpleNamespace(enforce_content_length=False)
    sources._demand_whole_body(response)
    assert response.raw.enforce_content_length is True


def test_missing_file_on_the_server_is_not_retried(tmp_path: Path, publisher: Publisher) -> None:
    del publisher.files["/ml-1m.zip"]
    message = refusal("ml-1m", tmp_path, publisher.base_urls)
    assert "the server answered 404" in message
    assert publisher.base_urls["grouplens"] + "ml-1m.zip" in message
    assert str(tmp_path / "ml-1m" / "ml-1m.inter") in message and COLUMNS in message
    assert publisher.requests == ["/ml-1m.zip"]
    assert files_below(tmp_path) == []


def test_offline_is_told_at_once_with_what_would_do_instead(tmp_path: Path, waits: list[float]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        start = time.monotonic()
        message = refusal("amazon-beauty", tmp_path, {"snap": url})
        elapsed = time.monotonic() - start + sum(waits)
    assert elapsed < 5
    assert f"{url}/ratings_Beauty.csv" in message and "refused" in message and "HTTPConnection" not in message
    assert f"{tmp_path / 'amazon-beauty' / 'amazon-beauty.inter'} with the tab-separated columns {COLUMNS}" in message
    assert files_below(tmp_path) == []


def test_offline_reason_is_not_an_error_the_caller_was_handling(tmp_path: Path, publisher: Publisher) -> None:
    publisher.faults = ["cut"] * 10
    try:
        raise FileNotFoundError(2, "unrelated")
    except FileNotFoundError:
        assert "unrelated" not in refusal("amazon-beauty", tmp_path, publisher.base_urls)


def test_silent_server_is_given_up_after_one_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(sources, "_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are made, but nothing answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        message = refusal("amazon-beauty", tmp_path, {"snap": url})
    assert "no answer within 0.5 s" in message
    assert waits == []  # four timeouts of 30 s would be two minutes
    assert files_below(tmp_path) == []


def test_server_that_goes_silent_in_mid_transfer_is_asked_again(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_TIMEOUT", 0.5)
    publisher.faults = ["stall"]
    assert fetch("amazon-beauty", tmp_path / "once", publisher).read_text() == as_inter(BEAUTY_ROWS)
    publisher.faults = ["stall"] * 10
    assert "no answer within 0.5 s" in refusal("amazon-beauty", tmp_path / "ever", publisher.base_urls)
    assert files_below(tmp_path) == ["once", "once/amazon-beauty", "once/amazon-beauty/amazon-beauty.inter"]


def test_a_transfer_without_a_length_that_ends_early_is_not_taken_as_whole(
    tmp_path: Path, publisher: Publisher
) -> None:
    """HTTP/1.0 ends a body by closing the connection, which a broken one does as well."""
    publisher.faults = ["unannounced"]
    message = refusal("amazon-beauty", tmp_path / "data", publisher.base_urls)
    assert "it has 1 rows where its publisher counts 5" in message and "was deleted" in message
    assert files_below(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in kilobytes")
def test_a_file_of_one_line_does_not_fill_the_memory(tmp_path: Path) -> None:
    import resource

    original = tmp_path / "amazon-beauty" / "ratings_Beauty.csv"
    original.parent.mkdir()
    with open(original, "wb") as file:
        file.truncate(600 << 20)  # NUL bytes, which take no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "line 1 is longer" in refusal("amazon-beauty", tmp_path, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


HTML = b"<!DOCTYPE html>\n<html><body>Moved, see elsewhere</body></html>\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(HTML, "line 1 is '<!DOCTYPE html>', where user,item,rating,timestamp belongs", id="html"),
        pytest.param(BEAUTY_CSV + b"A1,B1,5.0\n", "line 6 is 'A1,B1,5.0'", id="too few columns"),
        pytest.param(BEAUTY_CSV + b"A1,B1,5.0,1,2\n", "line 6 is 'A1,B1,5.0,1,2'", id="too many columns"),
        pytest.param(BEAUTY_CSV + b"\n", "line 6 is ''", id="blank line"),
        pytest.param(BEAUTY_CSV + b"A1,B1,5.0,soon\n", "line 6 is 'A1,B1,5.0,soon', where the timestamp", id="time"),
        pytest.param(BEAUTY_CSV + b"A1,B1,5.0,nan\n", "line 6 is 'A1,B1,5.0,nan', where the timestamp", id="nan time"),
        pytest.param(BEAUTY_CSV + b"A1,B1,good,1\n", "line 6 is 'A1,B1,good,1', where the rating", id="rating"),
        pytest.param(BEAUTY_CSV + b"A1,,5.0,1\n", "line 6 is 'A1,,5.0,1', where an id is empty", id="empty id"),
        pytest.param(BEAUTY_CSV + b"A1,B\t1,5.0,1\n", "line 6 is 'A1,B\\t1,5.0,1', where an id", id="tab in an id"),
        pytest.param(BEAUTY_CSV + b'A1,"B1",5.0,1\n', "where an id is empty or has a quotation mark", id="quoted id"),
        pytest.param(BEAUTY_CSV + b"A1,\xff,5.0,1\n", "line 6 is not UTF-8 text", id="not text"),
        pytest.param(b"x" * 1000, "line 1 is '" + "x" * 60 + "...'", id="long line"),
        pytest.param(b"x" * 1000 + BEAUTY_CSV, "line 1 is longer than 1,024 bytes", id="too long a line"),
        pytest.param(BEAUTY_CSV[: BEAUTY_CSV.index(b"\n") + 1], "1 rows where its publisher counts 5", id="cut short"),
        pytest.param(BEAUTY_CSV + BEAUTY_CSV, "it has 10 rows where its publisher counts 5", id="too many rows"),
        pytest.param(b"", "it is empty", id="empty file"),
    ],
)
def test_malformed_csv_is_refused_and_deleted(
    content: bytes, problem: str, tmp_path: Path, publisher: Publisher
) -> None:
    publisher.files["/ratings_Beauty.csv"] = content
    message = refusal("amazon-beauty", tmp_path, publisher.base_urls)
    assert problem in message
    assert publisher.base_urls["snap"] + "ratings_Beauty.csv" in message
    assert str(tmp_path / "amazon-beauty" / "amazon-beauty.inter") in message and COLUMNS in message
    assert files_below(tmp_path) == []


def damaged_zip() -> bytes:
    """A zip archive with one wrong byte in the stored text of ratings.dat, which still parses but for the checksum."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("ml-1m/ratings.dat", ML_1M_DAT)
    return buffer.getvalue().replace(b"1::1193::5", b"1::1193::4")


def zip_with_a_lost_member() -> bytes:
    """A zip archive whose directory says that its one member starts before the file does."""
    content = bytearray(as_zip({"ml-1m/ratings.dat": ML_1M_DAT}))
    at = content.index(b"PK\x05\x06") + 16
    # Here the end record tells where the directory starts. Too large by 8, it makes all other offsets count from -8.
    content[at : at + 4] = (content.index(b"PK\x01\x02") + 8).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(HTML, "not a sound zip archive", id="html"),
        pytest.param(zip_with_a_lost_member(), "not a sound zip archive", id="member before the file"),
        pytest.param(ML_1M_ZIP[: len(ML_1M_ZIP) // 2], "not a sound zip archive", id="truncated"),
        pytest.param(damaged_zip(), "not a sound zip archive (Bad CRC-32", id="wrong checksum"),
        pytest.param(as_zip({"ml-1m/movies.dat": b""}), "no member ml-1m/ratings.dat", id="no ratings"),
        pytest.param(as_zip({"ml-1m/ratings.dat": ML_1M_DAT + b"1,2,3,4\n"}), "line 4 is '1,2,3,4'", id="wrong format"),
    ],
)
def test_malformed_zip_is_refused_and_deleted(
    content: bytes, problem: str, tmp_path: Path, publisher: Publisher
) -> None:
    publisher.files["/ml-1m.zip"] = content
    message = refusal("ml-1m", tmp_path, publisher.base_urls)
    assert problem in message and publisher.base_urls["grouplens"] + "ml-1m.zip" in message
    assert files_below(tmp_path) == []


def test_good_file_can_be_fetched_after_a_bad_one(tmp_path: Path, publisher: Publisher) -> None:
    publisher.files["/ml-1m.zip"] = HTML
    refusal("ml-1m", tmp_path, publisher.base_urls)
    publisher.files["/ml-1m.zip"] = ML_1M_ZIP
    assert fetch("ml-1m", tmp_path, publisher).read_text() == as_inter(ML_1M_ROWS)


def test_full_disk_keeps_the_download_but_no_partial_file(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        message = refusal("amazon-beauty", tmp_path, publisher.base_urls)
    assert "No space left on device" in message and repr(str(tmp_path)) in message
    assert files_below(tmp_path) == ["amazon-beauty", "amazon-beauty/ratings_Beauty.csv"]


def test_interruption_leaves_no_partial_file(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("amazon-beauty", tmp_path, publisher)
    assert files_below(tmp_path) == ["amazon-beauty", "amazon-beauty/ratings_Beauty.csv"]


def test_data_path_that_is_a_file_is_refused(tmp_path: Path, publisher: Publisher) -> None:
    data_path = tmp_path / "data"
    data_path.write_text("mine")
    message = refusal("amazon-beauty", data_path, publisher.base_urls)
    assert message.startswith(f"data_path {str(data_path)!r} cannot take dataset 'amazon-beauty' (")
    assert publisher.requests == []
    assert data_path.read_text() == "mine"


def test_data_path_without_permission_is_refused(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by chmod: root, as which containers run tests, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    message = refusal("amazon-beauty", tmp_path, publisher.base_urls)
    assert "no permission to write" in message and str(tmp_path) in message
    assert publisher.requests == []
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("amazon_beauty", "amazon-beauty"), ("Amazon-Toys-Games", "amazon-toys-games"), ("ML-1M", "ml-1m")],
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str, tmp_path: Path, publisher: Publisher) -> None:
    message = refusal(name, tmp_path, publisher.base_urls)
    assert f"did you mean {nearest}?" in message
    assert publisher.requests == []


def test_unknown_name_tells_the_path_the_columns_and_the_known_names(tmp_path: Path) -> None:
    message = refusal("wikipedia", tmp_path, None)
    assert str(tmp_path / "wikipedia" / "wikipedia.inter") in message and COLUMNS in message
    assert "amazon-beauty, amazon-toys-games, ml-1m" in message
    assert "did you mean" not in message
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../ml-1m", "a/b", "/etc", "a\\b", "a..b", ".hidden", "ml-1m\0", 5])
def test_name_that_is_not_a_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    # Where such a name leads there is even a file, which must not be returned.
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m.inter").touch()
    message = refusal(name, tmp_path / "data", None)
    assert f"dataset name {name!r} is not a plain folder name" in message


@pytest.mark.parametrize(
    ("base_urls", "problem"),
    [
        ({"snapp": "http://127.0.0.1/"}, "unknown publisher 'snapp': use one of grouplens, snap"),
        ({"snap": "127.0.0.1:8000"}, "'127.0.0.1:8000' for publisher 'snap'"),
        ({"snap": "file:///etc/"}, "'file:///etc/' for publisher 'snap'"),
    ],
)
def test_wrong_base_urls_are_refused(base_urls: dict[str, str], problem: str, tmp_path: Path) -> None:
    assert problem in refusal("amazon-beauty", tmp_path, base_urls)


def test_impossible_address_is_not_retried(tmp_path: Path, waits: list[float]) -> None:
    message = refusal("amazon-beauty", tmp_path, {"snap": "http://[bad/"})
    assert "http://[bad/ratings_Beauty.csv" in message
    assert waits == []


def test_progress_bar_is_shown_only_on_request_and_on_a_terminal(
    tmp_path: Path, publisher: Publisher, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_dataset("ml-1m", tmp_path / "into a file", base_urls=publisher.base_urls)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ensure_dataset("ml-1m", tmp_path / "quiet", base_urls=publisher.base_urls, show_progress=False)
    assert capfd.readouterr() == ("", "")
    ensure_dataset("ml-1m", tmp_path / "shown", base_urls=publisher.base_urls)
    out, err = capfd.readouterr()
    assert out == "" and "100%|" in err


def test_pooch_logs_nothing(tmp_path: Path, publisher: Publisher) -> None:
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    pooch.get_logger().setLevel(logging.INFO)
    pooch.get_logger().addHandler(handler)
    try:
        publisher.faults = [503]
        fetch("ml-1m", tmp_path, publisher)
    finally:
        pooch.get_logger().removeHandler(handler)
    assert len(publisher.requests) == 2  # of which pooch would have told
    assert logged == []


def test_known_sources_are_the_publishers_own_addresses() -> None:
    assert {name: source.base_url + source.filename for name, source in KNOWN_SOURCES.items()} == {
        "amazon-beauty": "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_Beauty.csv",
        "amazon-toys-games": (
            "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_Toys_and_Games.csv"
        ),
        "ml-1m": "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    }
    assert {name: source.publisher for name, source in KNOWN_SOURCES.items()} == {
        "amazon-beauty": "snap",
        "amazon-toys-games": "snap",
        "ml-1m": "grouplens",
    }
