from benchmarks.upcycling import PROBES, steps_that_fit


def test_steps_fill_what_the_rest_leaves():
    """8 seconds of start and evaluations, half a second a step."""
    short, long = 8 + 20 * 0.5, 8 + PROBES * 20 * 0.5
    assert steps_that_fit(608, 20, short, long) == 1200
    assert steps_that_fit(5, 20, short, long) == 2  # there is always a training
    assert steps_that_fit(600, 20, 9.0, 9.0) == 2
