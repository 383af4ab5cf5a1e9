"""A headless Chromium for tests of pages; Debian's package `chromium`. Tests that need it skip where it is absent."""

import shutil
import subprocess
import tempfile

import pytest

CHROMIUM = shutil.which("chromium")
# Without these a browser looks for hosts of its own on the network at every start.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")


def rendered(address: str) -> str:
    """The page's document once its scripts have run."""
    with tempfile.TemporaryDirectory() as profile:
        result = subprocess.run(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=280,
        )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout
