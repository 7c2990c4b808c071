"""Downloads from a server on this machine that cuts connections, serves wrong bytes and refuses."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import fetch as fetch_module
from pipeline.errors import UserError
from pipeline.fetch import DOWNLOADS, Download, cache_folder, fetch, fetched

DATA = bytes(range(256)) * 4_000  # 1 MB
MD5 = hashlib.md5(DATA).hexdigest()


class Server:
    """What the server does, and what it was asked for.

    `cuts` holds how many bytes to send before the connection breaks, one a request; then all is sent.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.cuts: list[int] = []
        self.files = {"/data.bin": DATA}
        self.ranges = True
        self.refusals: list[int] = []
        self.with_length = True
        self.url = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            if state.refusals:
                return self.send_error(state.refusals.pop(0))
            if self.path not in state.files:
                return self.send_error(404)
            data = state.files[self.path]
            first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0  # type: ignore[index]
            if first >= len(data):
                return self.send_error(416)
            self.send_response(206 if wanted and state.ranges else 200)
            if state.with_length:
                self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            cut = state.cuts.pop(0) if state.cuts else len(data)
            self.wfile.write(data[first : first + cut])
            return None

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch_module, "_PAUSE_S", 0.001)
    monkeypatch.setitem(DOWNLOADS, "mnist", (Download("data.bin", MD5, (f"{state.url}/data.bin",)),))
    yield state
    http.shutdown()
    http.server_close()


def test_a_file_arrives_whole_and_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    assert fetch("mnist", tmp_path / "new", progress=lambda *report: reports.append(report)) == tmp_path / "new"
    assert (tmp_path / "new/data.bin").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["data.bin"]
    assert reports[-1] == ("data.bin", len(DATA), len(DATA))
    assert [done for _, done, _ in reports] == sorted({done for _, done, _ in reports})
    fetch("mnist", tmp_path / "new")
    assert server.requests == [("/data.bin", None)]


def test_a_cut_connection_is_continued_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 200_000]
    fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-", "bytes=100000-", "bytes=300000-"]


def test_a_download_that_was_killed_is_continued_by_the_next(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA[:700_000])
    fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert server.requests == [("/data.bin", "bytes=700000-")]


def test_a_part_that_is_whole_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA)
    fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_server_that_cannot_continue_sends_all_of_it(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [100_000, 900_000]
    fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert len(server.requests) == 3


def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(b"<html>" * 1_000)
    fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == ["bytes=6000-", None]


def test_a_file_with_the_wrong_hash_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"damaged")
    fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_wrong_bytes_are_refused_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    server.files["/data.bin"] = DATA[:-1] + b"x"
    with pytest.raises(UserError, match=f"could not download data.bin: .*its MD5 is not {MD5}; try again later"):
        fetch("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_a_stream_without_a_length_is_judged_by_its_hash(server: Server, tmp_path: Path) -> None:
    server.with_length = False
    server.cuts = [100_000]
    with pytest.raises(UserError, match="MD5"):
        fetch("mnist", tmp_path)
    fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA


@pytest.mark.parametrize("broken", ["missing", "wrong", "closed"])
def test_the_second_address_is_tried_when_the_first_fails(
    broken: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "http://127.0.0.1:9/data.bin" if broken == "closed" else f"{server.url}/{broken}.bin"
    server.files["/wrong.bin"] = b"wrong"
    monkeypatch.setitem(DOWNLOADS, "mnist", (Download("data.bin", MD5, (first, f"{server.url}/data.bin")),))
    fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_server_that_is_busy_for_a_while_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.refusals = [503, 429, 500]
    fetch("mnist", tmp_path)
    assert len(server.requests) == 4


def test_a_server_that_never_gets_on_is_given_up_and_the_part_kept(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000] + [0] * 100
    with pytest.raises(UserError, match=r"ended after 1,000 of 1,024,000 bytes \(5 tries in a row without a byte\)"):
        fetch("mnist", tmp_path)
    assert (tmp_path / "data.bin.part").read_bytes() == DATA[:1_000]
    assert not (tmp_path / "data.bin").exists()


def test_a_refusal_names_the_address_and_the_reason(server: Server, tmp_path: Path) -> None:
    del server.files["/data.bin"]
    with pytest.raises(
        UserError, match=rf"{server.url}/data\.bin: HTTP Error 404.*put the file into {tmp_path} by hand"
    ):
        fetch("mnist", tmp_path)
    assert len(server.requests) == 1


@contextmanager
def other_download(part: Path) -> Iterator[None]:
    with part.open("ab") as file:
        fetch_module.fcntl.flock(file, fetch_module.fcntl.LOCK_EX)
        yield


def test_two_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    with (
        other_download(tmp_path / "data.bin.part"),
        pytest.raises(UserError, match=r"data\.bin\.part is being written by another download; wait"),
    ):
        fetch("mnist", tmp_path)


def test_a_disk_that_is_full_says_so(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_module.os, "fsync", full)
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: No space left on device; make room"):
        fetch("mnist", tmp_path)
    assert not (tmp_path / "data.bin").exists()


def test_an_unknown_name_lists_the_menu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no download 'minst': choose one of cifar10, cifar100, mnist, fashion_mnist$"):
        fetch("minst", tmp_path)


def test_what_was_fetched_is_found_in_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DILUTE_CACHE", str(tmp_path))
    assert fetched("mnist") is None
    assert fetch("mnist") == tmp_path / "mnist" == fetched("mnist")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"DILUTE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/mnist"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/dilute/mnist"),
        ({"HOME": "/c"}, "/c/.cache/dilute/mnist"),
    ],
)
def test_the_cache_lies_where_the_user_says(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DILUTE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder("mnist")) == folder


def test_every_download_has_a_hash_and_an_address_that_ends_in_its_name() -> None:
    for downloads in DOWNLOADS.values():
        for download in downloads:
            assert re.fullmatch(r"[0-9a-f]{32}", download.md5)
            assert download.urls
            assert all(url.startswith("http") and url.endswith(f"/{download.file}") for url in download.urls)
