"""Recurring runs: the same submission again and again, at given times or intervals."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import kfp_server_api
from kfp import Client

from ava_core.errors import ConfigError
from pipelines.submit.exactly_once import create_once
from pipelines.submit.lookup import equals, first
from pipelines.submit.runs import prepare
from pipelines.submit.submission import Submission

CRON_FIELDS = 6
UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
CONCURRENCY_LIMIT = 10
"""KFP's own bound of runs of one schedule at a time."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to run.

    Attributes:
        cron: six fields, seconds first; or None.
        interval_seconds: time between two runs; or None. One of the two is given.
        max_concurrency: runs of the schedule at a time, 1 to 10.
    """

    cron: str | None = None
    interval_seconds: int | None = None
    max_concurrency: int = 1

    def __str__(self) -> str:
        return f"cron {self.cron}" if self.cron else f"every {self.interval_seconds} s"


def parse(cron: str | None, interval: str | None, max_concurrency: int) -> Schedule | None:
    """The schedule that the flags ask for, None without one.

    Raises:
        ConfigError: one line per fault.
    """
    faults = []
    if cron is not None and len(cron.split()) != CRON_FIELDS:
        faults.append(f'--cron "{cron}": must have {CRON_FIELDS} fields, seconds first, such as "0 0 3 * * *"')
    seconds = None
    if interval is not None:
        match = re.fullmatch(r"([1-9]\d*)([smhd]?)", interval)
        if match:
            seconds = int(match[1]) * UNIT_SECONDS[match[2]]
        else:
            faults.append(f"--interval {interval}: must be a number of seconds, or such as 30m, 6h, 1d")
    if not 1 <= max_concurrency <= CONCURRENCY_LIMIT:
        faults.append(f"--max-concurrency {max_concurrency}: must be 1 to {CONCURRENCY_LIMIT}")
    if faults:
        raise ConfigError(*faults)
    if cron is None and seconds is None:
        return None
    return Schedule(cron=cron, interval_seconds=seconds, max_concurrency=max_concurrency)


def create(client: Client, submission: Submission, schedule: Schedule) -> Any:
    """The recurring run of this submission at these times; the one that is there if it is the same in every respect.

    Missed times aren't caught up: a model trained twice from the same corpus is the same model.
    """
    reference, experiment_id = prepare(client, submission)
    body = kfp_server_api.V2beta1RecurringRun(
        experiment_id=experiment_id,
        display_name=f"{submission.name} {schedule}",
        description=f"schedule {_digest(submission, schedule)}",
        pipeline_version_reference=reference,
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=submission.arguments),
        max_concurrency=str(schedule.max_concurrency),  # 64-bit integers are strings in the API's JSON
        trigger=_trigger(schedule),
        mode="ENABLE",
        no_catchup=True,
        plugins_input=submission.plugins or None,
    )

    def find() -> Any:
        same = equals("description", body.description)
        return first(client.list_recurring_runs(experiment_id=experiment_id, filter=same).recurring_runs)

    return find() or create_once(
        lambda: client.recurring_runs.recurring_run_service_create_recurring_run(body), find, named=False
    )


def _trigger(schedule: Schedule) -> Any:
    if schedule.cron:
        return kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=schedule.cron))
    periodic = kfp_server_api.V2beta1PeriodicSchedule(interval_second=str(schedule.interval_seconds))
    return kfp_server_api.V2beta1Trigger(periodic_schedule=periodic)


def _digest(submission: Submission, schedule: Schedule) -> str:
    """Of all that makes two schedules the same."""
    parts = [
        submission.version,
        submission.arguments,
        submission.plugins,
        schedule.cron,
        schedule.interval_seconds,
        schedule.max_concurrency,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
