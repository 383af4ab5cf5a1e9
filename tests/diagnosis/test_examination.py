"""All checks together: side by side, in order, none of them the end of the others."""

import threading
import time

from ava_core.diagnosis import Finding, Place, examine
from ava_core.diagnosis.examination import CHECKS
from ava_core.diagnosis.finding import failed, ok
from ava_core.errors import ConfigError

HERE = Place.here()


def test_checks_wait_side_by_side_and_are_told_in_their_order():
    meeting = threading.Barrier(3, timeout=5)

    def check(name):
        def wait(place):
            meeting.wait()  # passes only if all three run at once
            time.sleep(0.05 * (name == "a"))
            return [ok(name, "met")]

        return wait

    found = examine(HERE, {name: check(name) for name in "abc"}, 5)
    assert [(finding.what, finding.value) for finding in found] == [("a", "met"), ("b", "met"), ("c", "met")]


def test_a_check_that_does_not_end_is_told_and_not_waited_for():
    never = threading.Event()
    began = time.monotonic()
    found = examine(HERE, {"slow": lambda place: [never.wait()], "fast": lambda place: [ok("fast", "yes")]}, 0.2)
    assert time.monotonic() - began < 1.5
    assert [(finding.status, finding.what) for finding in found] == [("warn", "slow"), ("ok", "fast")]
    assert found[0].value == "no answer within 0.2 s"
    never.set()


def test_a_check_that_breaks_is_told_and_the_others_go_on():
    def broken(place):
        raise RuntimeError("first line\nsecond")

    found = examine(HERE, {"broken": broken, "fine": lambda place: [ok("fine", "yes")]}, 5)
    assert found[0].value == "can't be looked at: RuntimeError: first line" and found[1].status == "ok"


def test_lines_hold_no_secrets_and_no_line_breaks():
    finding = Finding("fail", "mlflow", "http://me:secret@host\nsecond", "set password=hunter22")
    assert finding.line().startswith("fail  mlflow: http://***@host\\nsecond - set password=***")
    assert "secret" not in str(finding.as_json()) and "hunter22" not in str(finding.as_json())


def test_an_error_gives_its_last_part_as_the_way_out():
    finding = failed("settings", ConfigError("params.yaml: a.b: unknown key: did you mean a.c?"))
    assert (finding.value, finding.way_out) == ("params.yaml: a.b: unknown key", "did you mean a.c?")


def test_what_the_issue_of_a_bug_report_wants_is_looked_at():
    wanted = {"python", "packages", "compiler", "kernels", "cores", "memory", "gpu", "disk", "work", "docker"}
    assert wanted | {"mlflow", "git", "dvc", "settings", "proxy", "index"} == set(CHECKS)
