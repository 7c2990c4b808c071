import contextlib
import os
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from train.checkpoint import load_checkpoint, load_state, save_checkpoint, save_state

CPU = torch.device("cpu")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "weights": torch.randn(3, 2),
        "clock": {"examples": 2**40, "wall_s": 1.5},
        "rows": [{"a": 1.0}],
        "none": None,
    }
    save_state(tmp_path / "c.pt", state)
    back = load_state(tmp_path / "c.pt", CPU)
    assert torch.equal(back.pop("weights"), state.pop("weights"))  # type: ignore[arg-type]
    assert back == state
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_checkpoint_can_run_no_code(tmp_path: Path) -> None:
    torch.save({"x": Evil()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt cannot be read"):
        load_state(tmp_path / "c.pt", CPU)


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    save_state(tmp_path / "c.pt", {"weights": torch.zeros(100)})
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:keep])
    with pytest.raises(UserError, match=r"c\.pt cannot be read"):
        load_state(tmp_path / "c.pt", CPU)


def test_no_flipped_bit_and_no_zeroed_page_of_the_weights_goes_unseen(tmp_path: Path) -> None:
    values = torch.arange(1.0, 2_001.0)
    save_state(tmp_path / "c.pt", {"weights": values})
    whole = (tmp_path / "c.pt").read_bytes()
    first = whole.index(values.numpy().tobytes())
    for at in range(first, first + values.nbytes, 97):  # a prime: every byte of a float32 is met
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        (tmp_path / "c.pt").write_bytes(flipped)
        with pytest.raises(UserError, match=r"c\.pt cannot be read \(the checksum of .*/data/0 is wrong\)"):
            load_state(tmp_path / "c.pt", CPU)
    (tmp_path / "c.pt").write_bytes(whole[:4096] + bytes(4096) + whole[8192:])
    with pytest.raises(UserError, match="the checksum"):
        load_state(tmp_path / "c.pt", CPU)


def test_no_flipped_bit_of_the_file_is_an_error_of_another_kind(tmp_path: Path) -> None:
    """All around the weights: headers, the pickle, the table of contents."""
    save_state(tmp_path / "c.pt", {"weights": torch.zeros(1)})
    whole = (tmp_path / "c.pt").read_bytes()
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        (tmp_path / "c.pt").write_bytes(flipped)
        with contextlib.suppress(UserError):  # some bytes say nothing
            assert load_state(tmp_path / "c.pt", CPU) == {"weights": torch.zeros(1)}


def test_a_full_disk_is_named_and_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path / "c.pt", {"step": 1})

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*c\.pt.*No space left"):
        save_state(tmp_path / "c.pt", {"step": 2})
    assert load_state(tmp_path / "c.pt", CPU) == {"step": 1}


def state(examples: int) -> dict[str, dict[str, int]]:
    return {"clock": {"examples": examples}}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_latest_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    for number in range(5):
        save_checkpoint(tmp_path, state(number), keep=keep)
    names = ["checkpoint.pt", "checkpoint-1.pt", "checkpoint-2.pt"][:keep]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert [load_state(tmp_path / name, CPU) for name in names] == [state(4 - age) for age in range(keep)]
    save_checkpoint(tmp_path, state(5), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_checkpoint(tmp_path, CPU) is None
    for number in range(1, 4):
        save_checkpoint(tmp_path, state(1_000 * number), keep=3)
    assert load_checkpoint(tmp_path, CPU) == state(3_000)
    assert not capsys.readouterr().out
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:100])
    assert load_checkpoint(tmp_path, CPU) == state(2_000)
    said = capsys.readouterr().out
    assert "checkpoint.pt cannot be read" in said
    assert "going on from checkpoint-1.pt instead, at example 2,000" in said
    (tmp_path / "checkpoint-1.pt").unlink()  # as when a process was killed between two renames
    assert load_checkpoint(tmp_path, CPU) == state(1_000)
    (tmp_path / "checkpoint-2.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoint\.pt cannot be read"):
        load_checkpoint(tmp_path, CPU)
