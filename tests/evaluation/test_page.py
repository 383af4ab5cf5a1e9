"""The report in a real browser, without a network."""

import pytest

from tests.browser import needs_browser, rendered

pytestmark = [pytest.mark.slow, needs_browser]


def test_report_opens_offline_with_its_figures_and_samples(evaluated):
    page = rendered((evaluated.output / "report.html").as_uri())
    assert f"{evaluated.metrics['test_bits_per_byte']:.3f}" in page
    for text in ("Load of the experts", "Loss while training", "Samples", "<svg"):
        assert text in page, text
