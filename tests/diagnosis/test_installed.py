"""Python and packages: what is told of a version that is too old, missing, or other than the pinned one."""

from importlib import metadata

import pytest

from ava_core.diagnosis.installed import PINS, check_packages, check_python, normalized, read_pins

REQUIRED = ["numpy>=2.0", "Typing_Extensions>=4", 'tomli>=2; python_version < "3.0"', 'optuna>=5; extra == "sweep"']
FOUND = {"numpy": "2.3.1", "typing-extensions": "4.9", "torch": "2.13.0+cpu", "pytest": "8.4.0"}
STEPS = """# Pinned.
numpy==2.3.1 \\
    --hash=sha256:00
typing_extensions==4.9 ; python_version >= '3.8' \\
    --hash=sha256:00
tomli==2.0 ; python_version < '3.0' \\
    --hash=sha256:00
"""


@pytest.fixture
def pins(tmp_path):
    (tmp_path / "steps.txt").write_text(STEPS)
    (tmp_path / "dev.txt").write_text("pytest==8.4.0 \\\n    --hash=sha256:00\n")
    (tmp_path / "torch.txt").write_text("torch==2.13.0 \\\n    --hash=sha256:00\n")
    (tmp_path / "torch-cpu.txt").write_text("torch==2.13.0+cpu \\\n    --hash=sha256:00\n")
    return tmp_path


def only(findings):
    (finding,) = findings
    return finding


def packages(found, pins):
    return only(check_packages(found, REQUIRED, pins))


@pytest.mark.parametrize(("version", "status"), [((3, 10, 4), "fail"), ((3, 11, 2), "ok"), ((3, 14, 0), "warn")])
def test_a_python_that_ava_does_not_run_on_fails_and_one_without_pins_warns(version, status):
    finding = next(check_python(version))
    assert finding.status == status
    assert (status == "ok") != ("make setup PYTHON=python3.1" in finding.way_out)


def test_packages_as_pinned_are_fine(pins):
    assert packages(FOUND, pins).line() == "ok    packages: 4, as requirements/ pins, torch 2.13.0+cpu"
    assert packages(FOUND, pins / "none").value.startswith("4, as Ava asks for")


def test_a_version_that_ava_cannot_use_fails(pins):
    finding = packages({**FOUND, "numpy": "1.26.4"}, pins)
    assert (finding.status, finding.value) == ("fail", "numpy is 1.26.4, Ava needs >=2.0")
    assert "make setup" in finding.way_out


def test_a_package_that_is_needed_and_missing_fails(pins):
    finding = packages({name: version for name, version in FOUND.items() if name != "typing-extensions"}, pins)
    assert (finding.status, finding.value) == ("fail", "Typing_Extensions is missing, Ava needs >=4")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"numpy": "2.4.0"}, "numpy is 2.4.0, not 2.3.1"),
        ({"torch": "2.12.0"}, "torch is 2.12.0, not 2.13.0 or 2.13.0+cpu"),
        ({"pytest": "9.0"}, "pytest is 9.0, not 8.4.0"),
    ],
)
def test_another_version_than_the_pinned_one_warns(pins, change, told):
    finding = packages(FOUND | change, pins)
    assert (finding.status, finding.value) == ("warn", f"other than requirements/ pins: {told}")


def test_an_environment_of_the_steps_alone_lacks_nothing(pins):
    assert packages({name: version for name, version in FOUND.items() if name != "pytest"}, pins).status == "ok"


def test_many_faults_are_counted():
    wanted = [f"none{number}>=1" for number in range(9)]
    assert only(check_packages({}, wanted, PINS)).value.endswith("none3 is missing, Ava needs >=1 and 5 more")


def test_pins_of_this_checkout_are_read_with_their_markers():
    pinned = dict(read_pins(PINS / "steps.txt"))
    assert normalized("PyDantic") in pinned and len(pinned) > 50
    assert "torch" in dict([*read_pins(PINS / "torch.txt"), *read_pins(PINS / "torch-cpu.txt")])


def test_without_arguments_this_environment_is_looked_at():
    finding = only(check_packages())
    assert metadata.version("torch") in finding.value or finding.status != "ok"
