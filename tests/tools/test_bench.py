import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from benchmarks import build, load, measure, methods, picture, train  # noqa: E402
from benchmarks.measure import FIELDS, Settings, Variant  # noqa: E402

from pipeline.builder import build as write  # noqa: E402
from pipeline.dataset import dilute  # noqa: E402
from pipeline.errors import UserError  # noqa: E402
from pipeline.pictures import save  # noqa: E402
from pipeline.plan import Options, plan_build  # noqa: E402
from pipeline.sources import open_source  # noqa: E402


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(ROOT / "tools/bench"), *arguments], capture_output=True, text=True)


def test_variants_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    calls: list[str] = []

    def work(name: str, seconds: list[float]) -> Variant:
        times = iter(seconds)

        def run() -> float:
            nonlocal now
            calls.append(name)
            now += next(times)
            return 100

        return Variant(name, "items/s" if name.startswith("ours") else "ms", run)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    rows = measure.measure("stage", [work("ours/a", [9, 1, 4, 2]), work("peer/b", [9, 0.5, 0.25, 1])], 3)
    assert calls == ["ours/a", "peer/b"] * 4
    assert [float(row["p50"]) for row in rows] == [50, 500]  # items/s of 2 s; ms of 0.5 s
    assert [(row["variant"], row["n"], row["stage"]) for row in rows] == [
        ("ours/a", 3, "stage"),
        ("peer/b", 3, "stage"),
    ]
    assert rows[0]["run"] == rows[1]["run"]
    assert set(rows[0]) == set(FIELDS)


def test_rows_are_appended_under_one_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "CSV", tmp_path / "bench.csv")
    row = dict.fromkeys(FIELDS, "1")
    measure.keep([row])
    measure.keep([row, row])
    with (tmp_path / "bench.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [row] * 3


def test_the_kept_rows_have_the_agreed_columns_and_variants() -> None:
    with (ROOT / "tools/bench.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == FIELDS
    assert rows
    for row in rows:
        assert row["variant"].split("/")[0] in {"ours", "peer", "limit"}
        assert float(row["p20"]) <= float(row["p50"]) <= float(row["p80"])
        assert int(row["n"]) >= 3


def test_an_unknown_stage_lists_the_menu() -> None:
    done = bench("lables")
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "labels, order, build, open, load, load-alpha, load-small, train, methods" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("labels --shards /nope", "--shards is for load, load-small, train; stage labels takes none: leave it out"),
        ("load-alpha --shards /nope", "--shards is for load, load-small, train; stage load-alpha takes none"),
        ("load --model conv4", "--model is for train; stage load takes none"),
        ("open --batch 256", "--batch is for load, load-alpha, load-small, train; stage open takes none"),
        ("methods --compile", "--compile is for train; stage methods takes none"),
        ("order --peak-tflops 989", "--peak-tflops is for train; stage order takes none"),
    ],
)
def test_a_flag_of_another_stage_is_refused(arguments: str, message: str) -> None:
    done = bench(*arguments.split(), "--no-save")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {message}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["open", "load-small"])
def test_a_stage_runs_and_shows_every_variant(stage: str) -> None:
    done = bench(stage, "--rounds", "3", "--no-save")
    assert done.returncode == 0, done.stderr
    assert "ours/" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "more"),
    [
        (train.Net("conv4", 28, 16, 2), ["ours/conv4-28px-histogram"]),
        (train.Net("conv2", 224, 4, 2), []),
    ],
)
def test_stage_train_measures_what_bounds_a_run_and_its_peer(
    net: train.Net, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(build, "IMAGES", 40)
    monkeypatch.setattr(train, "LOADER_S", 0.1)
    monkeypatch.setattr(train, "DEVICE", torch.device("cpu"))
    train.data_of.cache_clear()  # before and after: the photos go with the folder
    found: dict[str, float | measure.Timed] = {}
    for variant in train.of_net(net, Settings(None, "", 0, 2, 3, peak_tflops=1)):
        variant.prepare()
        found[variant.name] = variant.run()
    train.data_of.cache_clear()
    name = f"{net.model}-{net.size_px}px"
    run, peer = found[f"ours/{name}-run"], found[f"peer/{name}-pytorch"]
    assert isinstance(run, measure.Timed)
    assert isinstance(peer, measure.Timed)
    assert run.amount == peer.amount == found[f"limit/{name}"] == net.steps * net.batch
    assert min(run.seconds, peer.seconds) > 0
    waited, mfu = found[f"ours/{name}-run-wait"], found[f"ours/{name}-run-mfu"]
    assert isinstance(waited, float)
    assert 0 < waited < 1
    shape = (net.size_px, net.size_px, 1 if net.size_px == 28 else 3)
    num_classes = 10 if net.size_px == 28 else 20
    assert mfu == pytest.approx(train.operations(net.model, shape, num_classes) * run.amount / run.seconds / 1e12)
    assert list(found) == [
        f"limit/{name}",
        f"ours/{name}-loader",
        f"ours/{name}-run",
        f"ours/{name}-run-wait",
        f"ours/{name}-run-mfu",
        *more,
        f"peer/{name}-pytorch",
    ]


@pytest.mark.slow
def test_saving_is_measured_with_an_optimizer_that_has_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(train, "save", lambda run: saved.append(len(run.learner.optimizer.state)))
    frac = train.save_time(train.Net("mlp1", 28, 2, 1)).run()
    assert isinstance(frac, float)
    assert 0 < frac < 0.01
    assert saved == [4]  # weights and biases of two layers


@pytest.mark.slow
def test_stage_methods_measures_every_method_its_floor_and_two_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(train, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(methods, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(methods, "DIGITS", train.Net("conv2", 28, 16, 2, 1))
    small = train.Net("conv2", 32, 16, 2, 1)
    monkeypatch.setattr(methods, "OF_PAPERS", {"coteaching": small, "mlnt": small})
    monkeypatch.setattr(methods.Passes, "forward", lambda self, rows: rows)
    monkeypatch.setattr(methods.Passes, "backward", lambda self, rows: 2 * rows)
    found: dict[tuple[str, str], float | measure.Timed] = {}
    against: dict[str, object] = {}
    for variant in methods.variants(Settings(None, "", 0, 2, 3)):
        variant.prepare()
        found[variant.name, variant.unit] = variant.run()
        against[variant.name] = variant.against
    runs = {name: value for (name, unit), value in found.items() if unit in ("examples/s", "images/s")}
    shown = {name.removeprefix("ours/conv2-28px-") for name in runs if name.startswith("ours/conv2-28px-")}
    assert shown == {*methods.METHODS} - {"mlnt"} | {"mlnt-first", "mlnt-second"}
    for name, value in runs.items():
        assert isinstance(value, measure.Timed)
        assert value.seconds > 0
        assert value.amount == (16 if name.startswith("limit/") else 32)
    floors = {name: value.seconds for name, value in runs.items() if name.startswith("limit/conv2-32px")}  # type: ignore[union-attr]
    assert floors == {
        "limit/conv2-32px-coteaching-kept": 2 * (16 + 2 * 8),
        "limit/conv2-32px-coteaching-whole": 2 * 48,
        "limit/conv2-32px-mlnt-first": 21 * 48,
        "limit/conv2-32px-mlnt-second": 41 * 48,
    }
    assert {"peer/conv2-32px-coteaching", "peer/conv2-32px-mlnt"} <= runs.keys()
    held = [value for (_, unit), value in found.items() if unit == "MB"]
    assert len(set(held)) == len(held) == 6  # each of a process of its own
    for megabytes in held:
        assert isinstance(megabytes, float)
        assert 100 < megabytes < 10_000
    compared = against["ours/conv2-28px-mixup"], against["ours/conv2-28px-histogram"]
    assert compared == (("ours/conv2-28px-plain",), ())
    assert found["ours/example-losses", "B/example"] == 4


def test_a_pass_sees_as_many_rows_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    net = train.Net("mlp1", 28, 16, 1, 1)
    run, log = train.open_run(net, methods.data_of(28, massive=False))
    log.close()
    passes, seen = methods.Passes(net, run), []
    monkeypatch.setattr(methods.F, "cross_entropy", lambda logits, labels: seen.append(len(labels)) or logits.sum())
    assert passes.forward(12) > 0
    assert passes.backward(5) > 0
    assert seen == [12] * 3 + [5] * 3


def test_a_row_is_compared_with_all_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    variants = [
        Variant("ours/a", "items/s", lambda: 0, against=("limit/b", "peer/c")),
        Variant("limit/b", "items/s", lambda: 0),
        Variant("peer/c", "items/s", lambda: 0, against="limit/b"),
    ]
    rows = [
        {"variant": name, "unit": "items/s", "p50": p50, "p20": p50, "p80": p50}
        for name, p50 in (("ours/a", "6"), ("limit/b", "8"), ("peer/c", "2"))
    ]
    measure.show(rows, variants)
    shown = capsys.readouterr().out
    assert [shown.count(ratio) for ratio in ("0.75 × limit/b", "3.00 × peer/c", "0.25 × limit/b")] == [1, 1, 1]


def test_stage_train_chooses_nets_by_what_is_asked_for(tmp_path: Path) -> None:
    def chosen(shards: Path | None = None, model: str = "", batch: int = 0) -> list[tuple[str, int, int]]:
        nets = train.nets_of(Settings(shards, model, batch, 2, 3))
        return [(net.model, net.size_px, net.batch) for net in nets]

    source = open_source("mnist5k")
    write(plan_build(source, dilute(source, alpha=1, clean=20), Options(check="none")), tmp_path / "digits")
    assert ("conv4", 28, 512) in chosen()
    assert {size for _, size, _ in chosen()} >= {28, 224}
    assert chosen(model="conv4", batch=64) == [("conv4", 28, 64)]
    assert chosen(model="mlp1") == [("mlp1", 28, 512)]
    assert chosen(tmp_path / "digits") == [("conv4", 28, 512)]
    assert chosen(tmp_path / "digits", model="conv2") == [("conv2", 28, 512)]


def test_operations_of_a_layer_are_counted_forward_and_backward() -> None:
    assert train.operations("perceptron", (28, 28, 1), 10) == 2 * (
        2 * 784 * 10
    )  # logits, and the gradient of the weights


def test_a_peak_of_nothing_is_refused() -> None:
    done = bench("train", "--peak-tflops", "0")
    assert done.returncode == 2
    assert done.stderr == "error: --peak-tflops 0.0; give a number above 0, such as 989 for an H100 in bf16\n"


def test_a_process_runs_once_for_all_that_is_shown_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    line = {"images": 50, "seconds": 2.0, "first_batch_s": 0.25, "cpu_s": 3.0, "peak_mb": 80.0}
    script.write_text(f"open({str(tmp_path / 'runs')!r}, 'a').write('.'); print('noise'); print({json.dumps(line)!r})")
    shown = load.Process("ours/a", [sys.executable, str(script)], 1).variants(None)
    rows = measure.measure("load", shown, 3)
    assert [(row["unit"], float(row["p50"])) for row in rows] == [
        ("images/s", 25),
        ("cpu-s/1000", 60),
        ("s", 0.25),
        ("MB", 80),
    ]
    assert (tmp_path / "runs").read_text() == "." * 4


def test_a_process_that_fails_says_why() -> None:
    process = load.Process("peer/b", [sys.executable, "-c", "raise ValueError('no tape in the drive')"], 1)
    with pytest.raises(UserError, match=r"peer/b failed: ValueError: no tape in the drive; to see all of it: taskset"):
        process.start()


def test_a_run_times_its_batches_and_counts_the_cpu_time_of_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import multiprocessing, sys, time
sys.path.insert(0, {str(load.SCRIPTS)!r})
from one_run import one_run

def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def loader():
    time.sleep(0.2)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        while True:
            yield pool.apply(spin, [0.05])

one_run(loader, 7, 10)
"""
    )
    process = load.Process("ours/a", [sys.executable, str(script)], 1)
    process.start()
    found = process.found
    assert found["images"] == 70
    assert found["first_batch_s"] >= 0.25
    assert found["seconds"] >= 0.5
    assert 0.45 <= found["cpu_s"] <= found["seconds"] + 0.1  # ticks of 10 ms; one process works at a time
    assert found["peak_mb"] > 10


def test_shards_that_are_not_cropped_are_sent_to_the_other_stage(tmp_path: Path) -> None:
    source = open_source("mnist5k")
    write(plan_build(source, dilute(source, alpha=1, clean=20), Options(check="none")), tmp_path / "digits")
    with pytest.raises(UserError, match="load-small"):
        load.shards_of(tmp_path / "digits")


def test_the_picture_shows_whole_loaders(tmp_path: Path) -> None:
    numbers = {**dict.fromkeys(FIELDS, "?"), "p50": "2", "p20": "1", "p80": "3"}
    rows = [
        {**numbers, "variant": variant, "unit": unit}
        for variant in ("ours/dali", "ours/dali-reuse-8", "peer/dali", "limit/decode-dali", "ours/dali-until-read")
        for unit in ("examples/s" if "reuse" in variant else "images/s", "s", "cpu-s/1000", "MB")
    ]
    save(picture.draw(rows), tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_script_of_stage_load_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(build, "IMAGES", 40)
    data = load.lay_out(build.synthetic_tree(), tmp_path, 2)
    commands = load.commands(data)
    first = {line[1]: name for name, line in reversed(commands.items())}  # of each script
    for name in {*first.values(), "ours/dali-until-decode", "ours/dali-reuse-8", "limit/decode-dali"}:
        process = load.process(name, commands[name], Settings(None, "", 8, 2, 3), batches=3)
        process.start()
        assert process.found["images"] >= 24, name
        assert process.found["seconds"] > 0, name
