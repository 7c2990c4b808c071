import contextlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from train.run_folder import RunFolder, begun, commit_of

CONFIG: dict[str, dict[str, Any]] = {
    "recipe": {"method": "plain", "lr": 0.1, "shards": None, "checkpoint_every": 5},
    "data": {"alpha": 3, "mean": (0.1,)},
}


def test_a_new_folder_says_what_runs_and_with_which_versions(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "b", CONFIG, resume=False, facts={"loader": "dali"})
    assert folder.read("config.json") == json.loads(json.dumps(CONFIG))
    entry = folder.read("versions.json")[0]
    assert {"dilute", "torch", "numpy", "python", "cpu_threads", "torchvision", "timm", "webdataset"} <= set(entry)
    assert any(name.startswith("nvidia-dali-cuda") for name in entry)
    assert entry["loader"] == "dali"
    assert entry["command"] == shlex.join(sys.argv)
    folder.close()
    RunFolder(folder.path, CONFIG, resume=True).close()
    assert len(folder.read("versions.json")) == 2


def test_a_checkout_has_a_commit_and_says_where_files_differ_from_it(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        as_someone = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *as_someone, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit_of(tmp_path) is None
    git("init")
    assert commit_of(tmp_path) is None  # there is none yet
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "first")
    assert commit_of(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("b")
    assert commit_of(tmp_path) == git("rev-parse", "HEAD") + "+"


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG, resume=False).close()
    with pytest.raises(UserError, match=r"holds a run already; add --resume"):
        RunFolder(tmp_path / "run", CONFIG, resume=False)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", [[], ["config.json.part"]], ids=["empty", "killed"])
def test_a_folder_without_anything_of_worth_is_taken(tmp_path: Path, left: list[str], resume: bool) -> None:
    for name in left:
        (tmp_path / name).write_text("{")
    folder = RunFolder(tmp_path, CONFIG, resume=resume)
    assert folder.read("config.json") == json.loads(json.dumps(CONFIG))
    folder.close()


def test_a_folder_with_something_else_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        for resume in (False, True):
            with pytest.raises(UserError, match="holds no run; give --out a new folder"):
                RunFolder(path, CONFIG, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "why"),
    [("file/x", "Not a directory"), ("/proc/x", "No such file or directory"), ("x" * 300, "File name too long")],
    ids=["in a file", "in proc", "long"],
)
def test_a_folder_that_cannot_be_is_named(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").touch()
    for resume in (False, True):
        with pytest.raises(UserError, match=rf"{name} cannot be written \({why}\); give another --out"):
            RunFolder(tmp_path / name, CONFIG, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_is_begun_in_a_folder_that_cannot_be(tmp_path: Path) -> None:
    assert begun(tmp_path) == tmp_path
    assert begun(tmp_path / "new") is None
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\); give another --out"):
        begun(tmp_path / ("x" * 300))


def test_resuming_another_recipe_shows_the_difference_key_by_key(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG, resume=False).close()
    other = {"recipe": CONFIG["recipe"] | {"lr": 0.2}, "data": CONFIG["data"] | {"alpha": 4}}
    with pytest.raises(UserError, match=r"another recipe \(alpha: 3 → 4; lr: 0\.1 → 0\.2\)"):
        RunFolder(tmp_path / "run", other, resume=True)


def test_moved_data_and_other_checkpoint_times_are_the_same_run(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG, resume=False).close()
    moved = {"recipe": CONFIG["recipe"] | {"shards": "/elsewhere", "checkpoint_every": 9}, "data": CONFIG["data"]}
    RunFolder(tmp_path / "run", moved, resume=True).close()


def test_what_only_another_method_looks_at_may_differ(tmp_path: Path) -> None:
    for method in ("plain", "mlnt"):
        path = tmp_path / method
        before, now = (
            {"recipe": {"method": method, "mlnt_inner_lr": rate}, "data": CONFIG["data"]} for rate in (0.2, 0.01)
        )
        RunFolder(path, before, resume=False).close()
        with contextlib.nullcontext() if method == "plain" else pytest.raises(UserError, match=r"mlnt_inner_lr: 0\.2"):
            RunFolder(path, now, resume=True).close()


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG, resume=False).close()
    (tmp_path / "run" / "config.json").write_text('{"recipe"')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        RunFolder(tmp_path / "run", CONFIG, resume=True)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(UserError, match=r"another process trains in .*run; wait for it, or give another --out"):
        RunFolder(tmp_path / "run", CONFIG, resume=True)
    assert len(first.read("versions.json")) == 1
    first.close()
    RunFolder(tmp_path / "run", CONFIG, resume=True).close()
