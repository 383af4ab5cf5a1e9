"""What MLflow's pages show of a registration, in a real browser."""

import pytest

from tests.browser import needs_browser, rendered

pytestmark = [pytest.mark.slow, needs_browser]


def test_registry_page_shows_the_champion_with_its_figures(registered, mlflow_server):
    page = rendered(f"{mlflow_server}/#/models/{registered.result.name}")
    for text in (registered.result.name, "Version 1", "champion", "challenger", "2.0000 bits per byte"):
        assert text in page, text


def test_run_page_shows_the_run(registered, mlflow_server):
    page = rendered(registered.result.record()["run_url"])
    assert "test_bits_per_byte" in page
