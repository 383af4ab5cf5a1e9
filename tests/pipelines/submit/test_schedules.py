"""Recurring runs."""

import pytest

from ava_core.errors import AvaError

CREATE = "RecurringRunService_CreateRecurringRun"


def test_schedule_at_given_times_is_made(server, submit, capsys):
    assert submit(server, "--cron", "0 0 3 * * *", "--max-concurrency", "2", "--plugin", "mlflow.disabled=true") == 0
    (recurring,), (version,) = server.state.recurring_runs, server.state.versions
    assert recurring["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert recurring["max_concurrency"] == "2" and recurring["no_catchup"] is True
    assert recurring["mode"] == "ENABLE"
    assert recurring["plugins_input"] == {"mlflow": {"disabled": True}}
    assert recurring["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert recurring["runtime_config"]["parameters"]["data_uri"] == "s3://bucket/raw"
    assert server.state.runs == []
    assert capsys.readouterr().out == (
        f"schedule {recurring['recurring_run_id']}  {recurring['display_name']}  ENABLED\n"
        f"page {server.address}/#/recurringrun/details/{recurring['recurring_run_id']}\n"
    )


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", "90"), ("45s", "45"), ("30m", "1800"), ("6h", "21600"), ("1d", "86400")]
)
def test_schedule_at_intervals_is_made(server, submit, text, seconds):
    submit(server, "--interval", text)
    assert server.state.recurring_runs[0]["trigger"] == {"periodic_schedule": {"interval_second": seconds}}


def test_same_schedule_is_not_made_twice_and_another_one_is(server, submit):
    for flags in (["--interval", "1d"], ["--interval", "1d"], ["--interval", "2d"]):
        submit(server, *flags)
    assert len(server.state.recurring_runs) == 2
    submit(server, "--interval", "1d", "--tracking-uri", "http://mlflow:5000")
    assert len(server.state.recurring_runs) == 3


@pytest.mark.parametrize("fault", [{"drop": "before"}, {"drop": "after"}, {"status": 429}, {"status": 503}], ids=str)
def test_lost_answer_leaves_one_schedule(server, submit, fault):
    server.fail(CREATE, **fault)
    assert submit(server, "--interval", "1d") == 0
    assert len(server.state.recurring_runs) == 1


def test_schedule_is_disabled_enabled_and_deleted(server, submit, tend, capsys):
    submit(server, "--interval", "1d")
    (recurring,) = server.state.recurring_runs
    schedule = recurring["recurring_run_id"]
    assert tend(server, "--disable-schedule", schedule) == 0 and recurring["status"] == "DISABLED"
    assert tend(server, "--enable-schedule", schedule) == 0 and recurring["status"] == "ENABLED"
    assert tend(server, "--delete-schedule", schedule) == 0 and server.state.recurring_runs == []
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"schedule {schedule} disabled",
        f"schedule {schedule} enabled",
        f"schedule {schedule} deleted",
    ]
    with pytest.raises(AvaError, match=r"404 NOT FOUND: recurring_run_id .* not found"):
        tend(server, "--enable-schedule", schedule)
