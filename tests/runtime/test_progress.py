import logging

from ava_core.runtime import progress


def test_plain_lines_come_now_and_then_with_share_figures_and_remaining_time(monkeypatch, caplog):
    clock = iter([0.0, 0.0, 4.0, 10.5, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "ava_core"), progress.Progress().task("train", 100) as advance:
        for done in (0, 20, 50, 60, 100):
            advance(done, loss="3.2", tokens_per_second="9")
    assert [record.getMessage().split("  ") for record in caplog.records] == [
        ["train", "50%", "loss 3.2", "tokens per second 9", "ETA 10 s"],
        ["train 100%", "loss 3.2", "tokens per second 9"],
    ]


def test_quiet_shows_nothing(caplog, capsys):
    with caplog.at_level(logging.INFO, "ava_core"), progress.Progress(quiet=True).task("x", 1) as advance:
        advance(1)
    assert not caplog.records
    assert capsys.readouterr().err == ""
