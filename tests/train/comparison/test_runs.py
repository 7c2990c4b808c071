import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from train.comparison.entries import entry_of
from train.comparison.runs import Comparison, claim, entrant, equal_time, measured, run_comparison, speed_of
from train.experiment import Stopped
from train.figures import runs
from train.figures.points import Noise
from train.figures.rows import Row
from train.figures.runs import Place

SYMMETRIC = Noise(alpha=0, law="symmetric", flip_rate=0.5)


def comparison(out: Path, *methods: str, **fields: Any) -> Comparison:
    given = {"noise": SYMMETRIC, "model": "perceptron", "epochs": 2, "images": 200, "seeds": 1, "shared": {"batch": 60}}
    return Comparison(**{"place": Place("mnist5k", out), "methods": methods, **given, **fields})


def run(asked: Comparison, workers: int = 1) -> list[Row]:
    kept: list[Row] = []
    run_comparison(asked, workers=workers, keep=kept.append)
    return kept


def row(name: str, examples: int, speed: float, before_s: float = 0.0, *, fixed: bool = False) -> Row:
    return {
        "entry": name, "examples": examples, "examples_per_s": speed, "batch": 100, "before_s": before_s,
        "before_is_fixed": fixed,
    }  # fmt: skip


def test_equal_time_is_that_of_the_slowest_at_each_ones_speed() -> None:
    rows = {
        "slow": [row("slow", 6_000, speed) for speed in (90.0, 100.0, 40.0)],  # at its best: 60 s
        "fast": [row("fast", 6_000, 210.0)],
        "images": [row("images", 500, 99.0)],
    }
    assert equal_time(rows) == {"slow": 6_000, "fast": 12_600, "images": 5_900}  # whole steps, of 5,940


def test_the_time_of_a_selection_counts() -> None:
    rows = {"plain": [row("plain", 6_000, 100.0)], "rsl": [row("rsl", 6_000, 120.0, before_s=70.0)]}
    assert equal_time(rows) == {"plain": 12_000, "rsl": 6_000}  # 50 s and 70 s


def test_a_selection_takes_its_share_of_a_longer_run_unless_its_length_is_given() -> None:
    slow = [row("slow", 6_000, 10.0)]  # 600 s
    grows, stays = ([row("rsl", 6_000, 100.0, before_s=60.0, fixed=fixed)] for fixed in (False, True))
    assert equal_time({"slow": slow, "rsl": grows}) == {"slow": 6_000, "rsl": 30_000}  # 300 s and 300 s
    assert equal_time({"slow": slow, "rsl": stays}) == {"slow": 6_000, "rsl": 54_000}  # 60 s and 540 s


def test_a_method_alone_has_the_time_that_it_took() -> None:
    assert equal_time({"a": [row("a", 700, 1 / 3)]}) == {"a": 700}


def test_speed_is_the_median_of_the_readings_of_a_run(tmp_path: Path) -> None:
    readings = [{"speed/examples_per_s": speed} for speed in (1.0, 50.0, 60.0)]  # the first one compiles
    lines = [*readings, {"eval/top1_accuracy": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert speed_of(tmp_path) == 50


def test_all_methods_see_the_same_labels_as_often(tmp_path: Path) -> None:
    rows = run(comparison(tmp_path / "out", "plain", "ema", "histogram", seeds=2))
    assert [(row["entry"], row["seed"]) for row in rows] == [
        ("plain", 0), ("ema", 0), ("histogram", 0), ("plain", 1), ("ema", 1), ("histogram", 1),
    ]  # fmt: skip
    configs = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/config.json")]
    for seed in (0, 1):
        of_seed = [config for config in configs if config["recipe"]["seed"] == seed]
        assert len(of_seed) == 3
        assert all(config["data"] == of_seed[0]["data"] for config in of_seed)
        assert of_seed[0]["data"]["noise_seed"] == seed
    assert {row["examples"] for row in rows} == {360}  # 180 images twice
    assert {(row["entry"], row["ema"]) for row in rows} == {("plain", 0), ("ema", 3), ("histogram", 0)}
    assert all(len(row["curve"]) == 6 for row in rows)  # every step: there are fewer than evaluations
    plain, _, histogram = rows[:3]
    assert plain["top1_last"] == pytest.approx(histogram["top1_last"], abs=0.02)  # of one label, and more decay
    assert plain["wrong_labels_said"] == pytest.approx(histogram["wrong_labels_said"], abs=0.05)


def test_a_histogram_of_copies_goes_over_images(tmp_path: Path) -> None:
    rows = run(comparison(tmp_path / "out", "plain", "histogram", "h_alpha", noise=Noise(alpha=2)))
    assert [row["examples"] for row in rows] == [1_080, 360, 360]
    assert [row["uses_clean_labels"] for row in rows] == [False, False, True]


def test_the_slowest_method_is_not_run_again_for_equal_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"plain": 200.0, "ema": 300.0, "mixup": 100.0}
    monkeypatch.setattr(
        "train.comparison.runs.measured", lambda job: {**measured(job), "examples_per_s": speeds[job.name]}
    )
    rows = run(comparison(tmp_path / "out", *speeds, equal_time=True))
    assert [(row["budget"], row["entry"], row["examples"]) for row in rows] == [
        ("epochs", "plain", 360), ("epochs", "ema", 360), ("epochs", "mixup", 360),
        ("time", "plain", 720), ("time", "ema", 1_080), ("time", "mixup", 360),
    ]  # fmt: skip
    assert len([*(tmp_path / "out").glob("*/result.json")]) == 5
    assert rows[2]["curve"] == rows[5]["curve"]


def test_a_stopped_comparison_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = "plain", "mixup", "coteaching"
    straight = run(comparison(tmp_path / "straight", *methods))
    real, begun = runs.run_experiment, []

    def stopped(*arguments: Any, **options: Any) -> dict[str, Any]:
        begun.append(1)
        if len(begun) == 2:
            raise Stopped(15)
        return real(*arguments, **options)

    monkeypatch.setattr(runs, "run_experiment", stopped)
    kept: list[Row] = []
    with pytest.raises(Stopped):
        run_comparison(comparison(tmp_path / "out", *methods), workers=1, keep=kept.append)
    assert [row["entry"] for row in kept] == ["plain"]
    rows = run(comparison(tmp_path / "out", *methods))
    assert len(begun) == 4  # plain once, mixup twice, coteaching once
    same = ("entry", "top1_last", "top1_best_test", "label_auroc", "label_precision", "wrong_labels_said", "examples")
    assert [[row[name] for name in same] for row in rows] == [[row[name] for name in same] for row in straight]


@pytest.mark.slow
def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    alone, shared = (run(comparison(tmp_path / str(n), "plain", "ema"), workers=n) for n in (1, 2))
    same = ("entry", "top1_last", "label_auroc")
    assert [[row[name] for name in same] for row in alone] == [[row[name] for name in same] for row in shared]


@pytest.mark.parametrize(
    ("methods", "fields", "said"),
    [
        (("plain", "h_alpha"), {}, "method h_alpha cannot take part: h_alpha is defined for law uniform"),
        (("plain", "marginal"), {}, "method marginal cannot take part: marginal is defined for law uniform"),
        (("forward", "forward+smoothing"), {}, "method forward\\+smoothing cannot take part: label_smoothing 0.1"),
        (("plain",), {"shared": {"batch": 181}}, "batch 181 is larger than the data, 180 examples"),
        (("histogram",), {"noise": Noise(alpha=2), "shared": {"batch": 181}}, "batch 181 is larger than the data, 180"),
        (("plain",), {"noise": Noise(alpha=0, law="pair")}, "--law pair needs --rate"),
        (("plain",), {"noise": Noise(alpha=2, flip_rate=0.5)}, "--rate belongs to a law"),
        (("plain",), {"place": Place("mnist5k", Path("unused"), Path("nowhere"))}, "nowhere"),
        (("plain",), {"noise": Noise(alpha=3, law="pair", flip_rate=0.2)}, "it goes with alpha 0, not 3"),
        (("plain",), {"epochs": -1}, "epochs is -1; give a number above 0"),
        (("plain",), {"model": "conv99"}, "conv99"),
        (("plain",), {"equal_time": True, "epochs": 1}, "equal time wants 5 steps of every method.* plain has 3 of"),
        (("plain",), {"images": 4_001}, "4001: the training split has 4,000 images"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_run(
    tmp_path: Path, methods: tuple[str, ...], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run(comparison(tmp_path / "out", *methods, **fields))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"noise": Noise(alpha=0, law="symmetric", flip_rate=0.4)}, "holds another comparison .flip_rate: 0.5 → 0.4"),
        ({"epochs": 3}, "epochs: 2 → 3"),
        ({"shared": {}}, "batch: 60 → None"),
        ({"methods": ("plain", "mixup")}, "compares ema too; name all of it in --methods"),
        ({"seeds": 1}, "has 2 seeds a method; give --seeds 2"),
        ({"equal_time": False}, "has runs of equal time too; give --equal-time"),
    ],
)
def test_a_folder_of_another_comparison_is_left_alone(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    claim(comparison(tmp_path / "out", "plain", "ema", seeds=2, equal_time=True))
    before = (tmp_path / "out/compare.json").read_bytes()
    with pytest.raises(UserError, match=said):
        claim(comparison(tmp_path / "out", **{"methods": ("plain", "ema"), "seeds": 2, "equal_time": True} | fields))
    assert (tmp_path / "out/compare.json").read_bytes() == before


def test_a_comparison_may_grow(tmp_path: Path) -> None:
    claim(comparison(tmp_path / "out", "plain", "ema"))
    grown = comparison(tmp_path / "out", "plain", "mixup", "ema", seeds=3, equal_time=True)
    claim(grown)
    assert json.loads((tmp_path / "out/compare.json").read_text())["methods"] == ["plain", "mixup", "ema"]


@pytest.mark.parametrize("name", ["photo.png", "results.csv"])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="exists and holds no comparison; give --out a new folder"):
        claim(comparison(tmp_path, "plain"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_comparison_whose_description_is_damaged_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text('{"a":')
    with pytest.raises(UserError, match=r"compare\.json is damaged .*; give another --out"):
        claim(comparison(tmp_path, "plain"))


def test_selections_and_meta_learning_take_part(tmp_path: Path) -> None:
    own = {"select_epochs": 30.0, "select_rate": 0.5, "mlnt_sets": 1, "mlnt_order": "first"}
    rows = {each["entry"]: each for each in run(comparison(tmp_path / "out", "rsl", "incv", "mlnt", own=own))}
    for name in ("rsl", "incv"):
        (path,) = (tmp_path / "out").glob(f"*/select-{name}/selection.json")
        said, result = (json.loads(each.read_text()) for each in (path, path.parent.parent / "result.json"))
        row = rows[name]
        assert row["label_precision"] == said["label_precision"]
        assert row["label_auroc"] == said["auroc"]
        assert row["kept_frac"] == said["kept"] / said["judged"] < 1
        assert row["wall_s"] == pytest.approx(result["wall_s"] + said["wall_s"])
        assert 0 < row["before_s"] < said["wall_s"]  # evaluations are no training
        assert row["before_is_fixed"]
        configs = (tmp_path / "out").glob(f"*/select-{name}/*/config.json")
        assert {json.loads(path.read_text())["recipe"]["method"] for path in configs} == {"plain"}
    recipes = [json.loads(path.read_text())["recipe"] for path in (tmp_path / "out").glob("*/config.json")]
    assert sorted((each["select"] or "", each["mlnt_sets"], each["select_epochs"]) for each in recipes) == [
        ("", 1, None), ("incv", 10, 30.0), ("rsl", 10, 30.0),
    ]  # fmt: skip
    assert rows["mlnt"]["label_precision"] is None


def test_the_time_of_an_estimate_counts(tmp_path: Path) -> None:
    (row,) = run(comparison(tmp_path / "out", "forward_estimated"))
    (result,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/result.json"))
    assert row["wall_s"] == pytest.approx(result["wall_s"] + result["transition"]["wall_s"])
    assert 0 < row["before_s"] < result["transition"]["wall_s"]
    assert not row["before_is_fixed"]


def test_settings_of_one_method_reach_it_alone(tmp_path: Path) -> None:
    own = {"forget_rate": 0.3, "rank_over": "data", "mlnt_order": "first", "mlnt_sets": 2}
    asked = comparison(tmp_path / "out", "plain", "coteaching", "mlnt", own=own)
    dataset = runs.open_point(asked.place, asked.noise, asked.images, noise_seed=0)
    reached = {}
    for name in asked.methods:
        recipe = runs.recipe_of(entrant(asked, name, entry_of(name)), dataset)
        reached[name] = [field for field, value in own.items() if getattr(recipe, field) == value]
    assert reached == {"plain": [], "coteaching": ["forget_rate", "rank_over"], "mlnt": ["mlnt_order", "mlnt_sets"]}


def test_images_may_be_shown_as_they_are(tmp_path: Path) -> None:
    run(comparison(tmp_path / "out", "plain", augment=False))
    (config,) = (tmp_path / "out").glob("*/config.json")
    assert json.loads(config.read_text())["data"]["augmentation"]["shift_px"] == 0
    with pytest.raises(UserError, match="augment"):
        claim(comparison(tmp_path / "out", "plain"))
