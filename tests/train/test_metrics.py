import json
import math
import re
import time
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from train.clock import Clock
from train.metrics import Log, Meter, Pace, kept_rows, progress_line

NO_FLAG = torch.tensor(-1)


def test_a_meter_gives_the_mean_of_what_was_added_since_the_last_reading() -> None:
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(value), "accuracy": torch.tensor(value / 10)})
    means, flag = meter.read(torch.tensor(7))
    assert means == pytest.approx({"loss": 3.0, "accuracy": 0.3})
    assert flag == 7
    meter.add({"loss": torch.tensor(5.0)})
    assert meter.read(NO_FLAG) == ({"loss": 5.0}, -1)


def test_a_meter_goes_on_from_its_state() -> None:
    first, second = Meter(), Meter()
    first.add({"loss": torch.tensor(1.0)})
    second.load_state_dict(first.state_dict())
    second.add({"loss": torch.tensor(2.0)})
    assert second.read(NO_FLAG)[0] == {"loss": 1.5}
    assert first.read(NO_FLAG)[0] == {"loss": 1.0}


def test_pace_leaves_pauses_out_and_shows_the_share_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    pace = Pace()
    with pace.waiting():
        now += 1.0
    now += 3.0
    with pace.pausing():
        now += 100.0
    pace.add(80)
    assert pace.read() == {"speed/examples_per_s": 20.0, "data/wait_frac": 0.25}
    now += 4.0
    pace.add(40)
    assert pace.read() == {"speed/examples_per_s": 10.0, "data/wait_frac": 0.0}
    assert pace.totals() == {"speed/examples_per_s": 15.0, "data/wait_frac": 0.125}
    resumed = Pace()
    resumed.load_state_dict(pace.state_dict())
    assert resumed.totals() == pace.totals()


def test_a_resumed_log_drops_what_the_killed_process_wrote_past_its_checkpoint(tmp_path: Path) -> None:
    clock = Clock(10, 100, 50)
    log = Log(tmp_path, examples=0)
    for _ in range(3):
        clock.tick()
        log.write(clock, {"train/loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"examples": 40, "tra')  # killed while it wrote
    log = Log(tmp_path, examples=20)
    clock = Clock(10, 100, 50, examples=30)
    log.write(clock, {"train/loss": 2.0})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["examples"], row["train/loss"]) for row in rows] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert rows[2] | {"wall_s": 0} == {"examples": 30, "step": 3, "epoch": 0.6, "wall_s": 0, "train/loss": 2.0}
    assert len(list(tmp_path.glob("events.*"))) == 2  # TensorBoard's own, one a process


def test_a_value_that_is_not_defined_is_left_out_of_a_row(tmp_path: Path) -> None:
    log = Log(tmp_path, examples=0)
    log.write(Clock(10, 100, 50), {"eval/loss": 1.0, "memorisation/given": math.nan, "eval/noisy_val_loss": math.inf})
    log.close()
    row = (tmp_path / "metrics.jsonl").read_text()
    assert "eval/loss" in row
    assert not {"NaN", "Infinity", "memorisation/given"} & set(re.findall(r"[\w/]+", row))


TORN = [b'{"exam', b"\xff\xfe\x00", b"5", b"{}"]


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_row_ends_a_log(torn: bytes) -> None:
    whole = [b'{"examples": 1}', b'{"examples": 2}']
    assert kept_rows(b"\n".join([*whole, torn]), 5) == whole
    assert kept_rows(b"\n".join(whole), 1) == whole[:1]
    assert kept_rows(b"", 5) == []


@pytest.mark.parametrize("torn", TORN)
def test_a_damaged_row_with_others_behind_it_is_named_and_nothing_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([b'{"examples": 1}', torn, b'{"examples": 2}', b""]))
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=r"metrics\.jsonl is damaged \(line 2 of 3 is no row of metrics\); mend or remove"
    ):
        Log(tmp_path, examples=5)
    assert path.read_bytes() == before


def test_the_progress_line_shows_speed_waiting_loss_and_time_to_go() -> None:
    values = {"speed/examples_per_s": 1_000.0, "data/wait_frac": 0.02, "train/loss": 2.25, "eval/top1_accuracy": 0.9}
    clock = Clock(1_000, 4_000_000, 50, examples=1_000)
    line = progress_line(clock, values)
    assert line == "1,000 examples/s  data wait 2%  loss 2.2500  ETA 1:06:39  test accuracy 0.9000"
    assert progress_line(clock, {}) == ""
