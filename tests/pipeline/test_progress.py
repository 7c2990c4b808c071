import pytest

from pipeline.progress import ImageBar


def test_a_bar_counts_images_and_shows_speed_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now)
    with ImageBar(100) as bar:
        now += 2
        bar.advance("check", 10, 4_000_000)
        (check,) = bar._bar.tasks
        assert (check.description, check.completed, check.total) == ("check", 10, 100)
        assert check.fields["speed"] == "5 images/s, 2 MB/s"
        bar.advance("write", 10, 30_000_000)
        now += 4
        bar.advance("write", 10, 50_000_000)
        write = bar._bar.tasks[1]
        assert (write.description, write.completed) == ("write", 20)
        assert write.fields["speed"] == "5 images/s, 20 MB/s"
        assert bar.images == 30


def test_a_bar_leaves_nothing_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    with ImageBar(100) as bar:
        bar.advance("write", 100, 5)
    assert "".join(capfd.readouterr()).strip() == ""
