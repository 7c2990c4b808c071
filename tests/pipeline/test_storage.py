"""Folders on a disk, on a real S3 server that fails as asked, and in other storage that fsspec reaches."""

import hashlib
import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3 import Server

from pipeline import storage
from pipeline.errors import DamagedImageError, UserError
from pipeline.storage import Folder, open_folder, part_bytes

PART = 1_000
DATA = bytes(range(256)) * 10  # three parts
NewFolder = Callable[[], Folder]

# The fixtures are one server and one temporary folder for all examples; every example takes a new folder in it.
few_examples = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["disk", "s3", "other"])
def new_folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewFolder:
    """Opens a new empty folder; the same storage for a whole test."""
    monkeypatch.setattr(storage, "_PART_BYTES", PART)
    if request.param == "s3":
        request.getfixturevalue("s3")
        bucket = request.getfixturevalue("s3").bucket()
        return lambda: open_folder(f"{bucket}/{uuid4()}/deep/")
    roots = {"disk": f"{tmp_path}", "other": "memory://"}
    return lambda: open_folder(f"{roots[request.param]}/{uuid4()}")


@pytest.fixture
def remote(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(storage, "_PART_BYTES", PART)
    return open_folder(f"{s3.bucket()}/set")


@pytest.fixture
def new_client(s3: Server) -> Iterator[None]:
    """Clients are kept; those of this test are its own."""
    forget_clients()
    yield
    forget_clients()


def forget_clients() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()


class Interrupted(BaseException):
    """What stops a writer half-way."""


def interrupt(folder: Folder, name: str, data: bytes) -> None:
    with folder.replacing(name) as file:
        file.write(data)
        raise Interrupted


@few_examples
@given(pieces=st.lists(st.binary(max_size=2 * PART), max_size=3), cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_what_is_written_is_read(new_folder: NewFolder, pieces: list[bytes], cuts: tuple[float, float]) -> None:
    folder, data = new_folder(), b"".join(pieces)
    with folder.replacing("a.bin") as file:
        for piece in pieces:
            file.write(piece)
    first, last = sorted(int(cut * len(data)) for cut in cuts)
    assert folder.read("a.bin") == data
    assert folder.size("a.bin") == len(data)
    assert folder.digest("a.bin") == (len(data), hashlib.sha256(data).hexdigest())
    assert folder.read_range("a.bin", first, last - first) == data[first:last]
    assert folder.view("a.bin")[first:last] == data[first:last]
    with folder.open("a.bin") as file:
        assert (file.read(first), file.read(last - first), file.read()) == (
            data[:first],
            data[first:last],
            data[last:],
        )
        assert file.seek(first) == first
        assert file.read(last - first) == data[first:last]


@pytest.mark.parametrize("data", [b"", b"small", DATA, DATA[: 2 * PART]])
def test_any_size_is_written_in_one_call(new_folder: NewFolder, data: bytes) -> None:
    folder = new_folder()
    folder.write("a.bin", data)
    assert folder.read("a.bin") == data
    assert folder.view("a.bin")[0 : len(data)] == data


@few_examples
@given(
    names=st.sets(
        st.from_regex(r"[a-zA-Z0-9_.-]*[a-z0-9]", fullmatch=True).filter(lambda name: len(name) < 99), max_size=5
    )
)
def test_names_are_those_of_the_files_directly_in_it_sorted(new_folder: NewFolder, names: set[str]) -> None:
    folder = new_folder()
    assert folder.names() == []
    for name in names:
        folder.write(name, b"")
    folder.write("the.state/hidden", b"")
    assert folder.names() == sorted(names)
    assert folder.names("the.state") == ["hidden"]
    assert folder.names("the.sta") == folder.names("the.state/hidden") == []


def test_what_another_writes_is_seen_at_once(new_folder: NewFolder) -> None:
    folder = new_folder()
    folder.write("a", b"old")
    assert (folder.names(), folder.size("a"), folder.read("a")) == (["a"], 3, b"old")
    forget_clients()
    other = open_folder(str(folder))
    other.write("a", b"newer")
    other.write("b", b"")
    assert (folder.names(), folder.size("a"), folder.read("a")) == (["a", "b"], 5, b"newer")
    other.remove("a")
    assert (folder.names(), folder.size("a")) == (["b"], None)


@pytest.mark.parametrize("data", [b"small", DATA, DATA[: 2 * PART]])
def test_a_writer_that_is_interrupted_publishes_nothing(new_folder: NewFolder, data: bytes) -> None:
    folder = new_folder()
    folder.write("a", b"old")
    for name in ("a", "b"):
        with pytest.raises(Interrupted):
            interrupt(folder, name, data)
    assert folder.read("a") == b"old"
    assert folder.size("b") is None
    assert "b" not in folder.names()
    folder.write("b", data)  # nor does what it left disturb the next one
    assert folder.read("b") == data


def test_what_is_removed_is_gone_and_may_be_removed_again(new_folder: NewFolder) -> None:
    folder = new_folder()
    for name in ("a", "ab", "state/1", "state/2", "states/1"):
        folder.write(name, b"")
    for _ in range(2):
        folder.remove("a")
        folder.remove_folder("state")
        assert folder.names() == ["ab"]
        assert folder.names("state") == []
        assert folder.names("states") == ["1"]


def test_a_file_that_is_not_there_is_said_to_be_missing(new_folder: NewFolder) -> None:
    folder = new_folder()
    folder.write("folder/file", b"")
    for name in ("missing", "fol"):
        assert folder.size(name) is None
        for read in (folder.read, folder.digest, folder.view, folder.open, lambda name: folder.read_range(name, 0, 1)):
            with pytest.raises(FileNotFoundError, match=f"{folder}/{name}"):
                read(name)
    assert folder.size("folder") is None


@pytest.mark.parametrize(("first", "last"), [(8, 11), (10, 11), (50, 60)])
def test_a_range_that_the_file_does_not_hold_is_damage(new_folder: NewFolder, first: int, last: int) -> None:
    folder = new_folder()
    folder.write("a", bytes(10))
    with pytest.raises(DamagedImageError, match="cut short"):
        folder.read_range("a", first, last - first)
    view = folder.view("a")
    with pytest.raises(DamagedImageError, match="cut short"):
        view[first:last]
    assert folder.read_range("a", 10, 0) == view[10:10] == b""


def test_a_folder_survives_pickling_after_use(new_folder: NewFolder) -> None:
    folder = new_folder()
    folder.write("a", DATA)
    copy = pickle.loads(pickle.dumps(folder))
    assert str(copy) == str(folder)
    assert copy.read("a") == DATA


def write_and_read(folder: Folder, letter: str) -> str:
    for turn in range(5):
        folder.write("same", letter.encode() * 3 * PART)
        folder.write(f"{letter}-{turn}", letter.encode())
    return hashlib.sha256(folder.read("same")).hexdigest()


def test_processes_write_at_once(remote: Folder) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap_async(write_and_read, [(remote, "a"), (remote, "b")]).get(timeout=60)
    assert remote.names() == [*(f"{letter}-{turn}" for letter in "ab" for turn in range(5)), "same"]
    whole = {hashlib.sha256(letter * 3 * PART).hexdigest() for letter in (b"a", b"b")}
    assert {*found, remote.digest("same")[1]} <= whole


def test_a_forked_process_does_not_use_its_parents_connection(remote: Folder) -> None:
    remote.write("a", b"")
    process = multiprocessing.get_context("fork").Process(target=write_and_read, args=(remote, "b"))
    process.start()
    process.join(timeout=30)
    process.kill()
    assert process.exitcode == 0
    assert remote.names() == ["a", *(f"b-{turn}" for turn in range(5)), "same"]


TASKS: dict[str, Callable[[Folder], object]] = {
    "GetObject": lambda folder: folder.read("large"),
    "GetObject ": lambda folder: folder.digest("large"),
    "PutObject": lambda folder: folder.write("new", b"small"),
    "CreateMultipartUpload": lambda folder: folder.write("new", DATA),
    "UploadPart": lambda folder: folder.write("new", DATA),
    "CompleteMultipartUpload": lambda folder: folder.write("new", DATA),
    "HeadObject": lambda folder: folder.size("large"),
    "ListObjectsV2": lambda folder: folder.names(),
    "DeleteObject ": lambda folder: folder.remove("large"),
    "DeleteObjects": lambda folder: folder.remove_folder("state"),
}


def outcome(folder: Folder, task: Callable[[Folder], object]) -> tuple[object, dict[str, bytes]]:
    folder.remove("new")
    folder.write("large", DATA)
    folder.write("state/1", b"")
    result = task(folder)
    return result, {
        name: folder.read(name) for name in [*folder.names(), *map("state/{}".format, folder.names("state"))]
    }


@pytest.mark.parametrize("request_name", TASKS)
def test_a_fault_that_passes_changes_nothing(s3: Server, remote: Folder, request_name: str) -> None:
    task = TASKS[request_name]
    expected = outcome(open_folder(f"memory://{uuid4()}"), task)
    faults: list[dict[str, Any]] = [{"status": 500}, {"status": 503}, {"lose": True}, {"cut": 7}]
    for fault in faults:

        def hurt(folder: Folder, fault: dict[str, Any] = fault) -> object:
            s3.fail(request_name, **fault)
            return task(folder)

        assert outcome(remote, hurt) == expected, fault
        s3.reset()  # an answer without a body cannot be cut
    # Of an upload whose beginning was lost nobody knows the id; it holds no part.
    assert request_name == "CreateMultipartUpload" or s3.uploads(str(remote)) == []


@pytest.mark.parametrize("request_name", TASKS)
def test_a_fault_that_stays_is_told_in_one_line(s3: Server, remote: Folder, request_name: str) -> None:
    remote.write("large", DATA)
    remote.write("state/1", b"")
    s3.fail(request_name, times=None, status=500)
    before = s3.requests()
    with pytest.raises(UserError) as error:
        TASKS[request_name](remote)
    message = str(error.value)
    assert message.startswith("cannot ")
    assert f" {remote}" in message
    assert ", 6 times: " in message
    assert "500" in message or "InternalError is what the test asked for. (InternalError); check the address" in message
    assert "\n" not in message
    assert s3.uploads(str(remote)) == []
    assert sum(request_name in request for request in s3.requests()[len(before) :]) == 6
    s3.reset()
    assert remote.size("new") is None
    assert remote.read("large") == DATA


def test_a_storage_that_stays_busy_is_asked_six_times(s3: Server, remote: Folder) -> None:
    s3.fail("PutObject", times=None, status=503)
    with pytest.raises(UserError, match=rf"^cannot write {remote}/a, 6 times: .*\(SlowDown\); check the address"):
        remote.write("a", b"")
    assert len(s3.requests()) == 1 + 6  # with the bucket's


def test_what_is_refused_for_good_is_not_tried_again(s3: Server, remote: Folder) -> None:
    s3.fail("PutObject", times=None, status=403)
    with pytest.raises(UserError, match=rf"^cannot write {remote}/a: .*\(AccessDenied\); check what your credentials"):
        remote.write("a", b"")
    assert len(s3.requests()) == 2  # with the bucket's


def test_a_removal_that_the_storage_only_pretends_is_repeated(s3: Server, remote: Folder) -> None:
    remote.write("state/1", b"")
    s3.fail("DeleteObjects", status=200)
    remote.remove_folder("state")
    assert remote.names("state") == []


def test_a_bucket_that_is_not_there_is_an_error_everywhere(s3: Server) -> None:
    folder = open_folder("s3://no-such-bucket/set")
    tasks: list[Callable[[], object]] = [folder.names, lambda: folder.size("a"), lambda: folder.write("a", b"")]
    for task in tasks:
        with pytest.raises(UserError, match=r"s3://no-such-bucket/set.*\(NoSuchBucket\); make the bucket"):
            task()


@pytest.mark.usefixtures("new_client")
def test_a_server_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"^cannot list s3://b/set, 6 times: .*127\.0\.0\.1:1.*AWS_ENDPOINT_URL"):
        open_folder("s3://b/set").names()


@pytest.mark.usefixtures("new_client")
def test_missing_credentials_are_an_error_at_once(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"^cannot read s3://b/a: Unable to locate credentials .*AWS_ACCESS_KEY_ID"):
        open_folder("s3://b").read("a")
    assert s3.requests() == []


def test_a_completion_whose_answer_was_lost_counts(s3: Server, remote: Folder) -> None:
    s3.fail("CompleteMultipartUpload", lose=True)
    s3.fail("CompleteMultipartUpload", status=404)  # what S3 says of an upload that is complete
    remote.write("a", DATA)
    assert remote.read("a") == DATA


@pytest.mark.parametrize("there_before", [True, False])
def test_an_upload_that_someone_else_ended_does_not_count(s3: Server, remote: Folder, there_before: bool) -> None:
    if there_before:
        remote.write("a", DATA)
    s3.fail("CompleteMultipartUpload", status=404)
    with pytest.raises(UserError, match="ended by someone else"):
        remote.write("a", DATA)


def test_small_files_are_one_request_and_large_ones_go_in_parts(s3: Server, remote: Folder) -> None:
    def asked(task: Callable[[], object]) -> list[str]:
        s3.reset()
        task()
        return [request.split()[0] for request in s3.requests()]

    assert asked(lambda: remote.write("a", b"small")) == ["PutObject"]
    assert asked(lambda: remote.read("a")) == ["GetObject"]
    for size in (2 * PART, 2 * PART - 1):
        parts = asked(lambda size=size: remote.write("b", bytes(size)))  # type: ignore[misc]
        assert parts == ["CreateMultipartUpload", "UploadPart", "UploadPart", "CompleteMultipartUpload"]


def test_an_upload_that_is_interrupted_leaves_no_parts(s3: Server, remote: Folder) -> None:
    with pytest.raises(Interrupted):
        interrupt(remote, "a", DATA)
    assert any("UploadPart" in request for request in s3.requests())
    assert s3.uploads(str(remote)) == []


def test_files_in_other_storage_name_themselves_like_those_on_a_disk(remote: Folder) -> None:
    with remote.replacing("a") as file:
        assert (file.name, file.mode) == (f"{remote}/a", "wb")
    with remote.open("a") as file:
        assert (file.name, file.mode) == (f"{remote}/a", "rb")


def test_parts_leave_while_a_file_is_written(s3: Server, remote: Folder) -> None:
    with remote.replacing("a") as file:
        for num_parts in range(1, 4):
            file.write(bytes(PART))
            sent = [request for request in s3.requests() if "UploadPart" in request]
            assert len(sent) >= num_parts - 1  # at most one is on its way
        assert s3.uploads(str(remote)) == ["set/a"]


def test_reading_in_order_asks_for_a_few_large_ranges(
    s3: Server, remote: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_READ_AHEAD_BYTES", PART)
    remote.write("a", DATA)
    s3.reset()
    with remote.open("a") as file:
        assert b"".join(iter(lambda: file.read(100), b"")) == DATA
    assert sum("GetObject" in request for request in s3.requests()) == 3


def test_the_largest_object_fits_into_the_parts_that_s3_takes() -> None:
    parts = [part_bytes(number) for number in range(10_000)]
    assert min(parts) >= 5 << 20
    assert max(parts) <= 512 << 20
    assert sum(parts) > 10**12


@pytest.mark.parametrize("mark", ["", "file://"])
def test_paths_are_folders_on_the_disk(tmp_path: Path, mark: str) -> None:
    folder = open_folder(f"{mark}{tmp_path}/new")
    assert folder.local == tmp_path / "new"
    assert str(folder) == f"{tmp_path}/new"
    assert open_folder(tmp_path).local == tmp_path
    assert open_folder("memory://x").local is None


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3:///", "names no bucket"),
        ("s4://bucket", "no storage is called 's4'; give a folder"),
        ("zip::s3://bucket/x", "no storage is called"),
        (Path("s3://bucket/set"), "the address is s3://bucket/set"),
    ],
)
def test_an_address_of_nothing_is_refused(where: str | Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_folder(where)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="the driver of gs:// is missing: Please install gcsfs"):
        open_folder("gs://bucket/x")
