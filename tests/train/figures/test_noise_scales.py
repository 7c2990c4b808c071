"""Claims about noise scale and schedules are held against the rows that bear on them."""

from typing import Any

from figure_rows import row, verdicts

from train.figures.menu import FIGURES
from train.figures.points import Finding


def test_the_noise_scale_is_held_against_the_square() -> None:
    def at(*factors: float) -> list[dict[str, Any]]:
        scales = zip((0, 5, 20), (1.0, *factors), strict=True)
        return [row(lr=0.0, alpha=a, noise_scale=130 * f * (1 + a) ** 2) for a, f in scales]

    assert verdicts("fig10", at(0.9, 1.2))[0] == "holds"
    assert verdicts("fig10", at(0.9, 3.0))[0] == "in part"
    assert verdicts("fig10", at(0.1, 3.0))[0] == "does not hold"


def test_a_noise_scale_that_was_not_resolved_is_named_and_nothing_holds() -> None:
    check = FIGURES["fig10"].claims[0].check
    rows = [row(lr=0.0, alpha=a, noise_scale=None if a == 50 else 130.0 * (1 + a) ** 2) for a in (0, 5, 50)]
    found = check(rows)
    assert found.verdict == "in part"
    assert found.ours.endswith("; not resolved: |G|² at α = 50")
    assert check(rows[2:]) == ("not resolved: |G|² at α = 50", "not run")


def test_schedules_are_compared_by_the_best_batch_of_each() -> None:
    def best(schedule: str, *sizes: int) -> list[dict[str, Any]]:
        return [
            row(schedule=schedule, ema=0.0, rate="chosen", alpha=a, batch=b, noisy_val_loss=2.0 + (b != size))
            for a, size in zip((0, 20), sizes, strict=True)
            for b in (32, 128, 512)
        ]

    check = FIGURES["fig10"].claims[1].check
    assert check(best("constant", 128, 512) + best("cosine", 512, 128)).verdict == "holds"
    assert check(best("constant", 128, 512) + best("cosine", 512, 512)).verdict == "in part"
    assert check(best("constant", 512, 512) + best("cosine", 512, 512)).verdict == "does not hold"  # nothing moved
    blurred = [each | {"noisy_val_loss_se": 2.0} for each in best("constant", 128, 512) + best("cosine", 512, 128)]
    assert check(blurred).verdict == "cannot be told"
    assert check(best("constant", 512, 512) + best("cosine", 128, 512)).verdict == "does not hold"
    assert check(best("constant", 512, 128) + best("cosine", 128, 512)).verdict == "does not hold"
    assert check(best("constant", 512, 128)) == Finding("", "not run")


def test_the_square_is_drawn_from_the_weights_that_stand_still() -> None:
    panel = FIGURES["fig10"].panels[0]
    rows = [row(lr=1e-3, alpha=a, noise_scale=500.0) for a in (0, 5)] + [row(lr=0.0, alpha=0, noise_scale=130.0)]
    assert panel.select(rows)[0]["noise_scale"] == 130.0
