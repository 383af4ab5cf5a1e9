"""What the command does once its flags are read: submit, schedule, or manage what was submitted."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from kfp import Client

from ava_core.redaction import redact
from pipelines.submit import runs, schedules, submission, watch
from pipelines.submit.connection import connect, quiet
from pipelines.submit.errors import explained
from pipelines.submit.flags import ON_RUNS, ON_SCHEDULES, PROGRAM
from pipelines.submit.schedules import Schedule
from pipelines.submit.submission import Submission


def carry_out(flags: argparse.Namespace) -> int:
    """Do what the flags of `flags.parse` ask for, and give the exit code.

    Raises:
        ConfigError: a wrong configuration, before anything is sent.
        AvaError: the server can't be used, or refuses.
    """
    action = _choose(flags)
    with explained(flags.host):
        client = connect(
            flags.host,
            token=flags.token,
            token_file=flags.token_file,
            ca_file=flags.ca_file,
            namespace=flags.namespace,
        )
    return action(client)


def _choose(flags: argparse.Namespace) -> Callable[[Client], int]:
    if any(getattr(flags, name) for name in ON_SCHEDULES):
        return lambda client: _tend_schedule(client, flags)
    if any(getattr(flags, name) for name in ON_RUNS):
        return lambda client: _tend_run(client, flags)
    schedule = schedules.parse(flags.cron, flags.interval, flags.max_concurrency)
    asked = submission.from_flags(flags)
    if schedule is not None:
        return lambda client: _schedule(client, flags, asked, schedule)
    return lambda client: _submit(client, flags, asked)


def _submit(client: Client, flags: argparse.Namespace, asked: Submission) -> int:
    with explained(flags.host), quiet():
        reference, experiment_id = runs.prepare(client, asked)
    again = f"the same command with --submit-id {asked.submit_id} takes up a run that was made"
    with explained(flags.host, hint=f"; {again}"), _interruptible(f"{again}, and makes no second one"), quiet():
        run = runs.start(client, asked, reference, experiment_id)
    print(f"run {run.run_id}  {run.display_name}")
    print(f"page {flags.host}/#/runs/details/{run.run_id}", flush=True)
    for name, output in (run.plugins_output or {}).items():
        _print_plugin(name, output)
    return _wait(client, flags, run.run_id) if flags.wait else 0


def _schedule(client: Client, flags: argparse.Namespace, asked: Submission, schedule: Schedule) -> int:
    with explained(flags.host, hint="; the same command makes no second schedule"), quiet():
        recurring = schedules.create(client, asked, schedule)
    print(f"schedule {recurring.recurring_run_id}  {recurring.display_name}  {recurring.status}")
    print(f"page {flags.host}/#/recurringrun/details/{recurring.recurring_run_id}")
    return 0


def _tend_run(client: Client, flags: argparse.Namespace) -> int:
    run_id = flags.watch or flags.retry or flags.terminate
    with explained(flags.host):
        if flags.retry:
            runs.retry(client, run_id)
            print(f"run {run_id} goes on", flush=True)
        elif flags.terminate:
            ended = runs.terminate(client, run_id)
            print(f"run {run_id} had already ended: {ended}" if ended else f"run {run_id} is being terminated")
    if flags.watch or flags.wait:
        return _wait(client, flags, run_id, wanted="CANCELED" if flags.terminate else "SUCCEEDED")
    return 0


def _tend_schedule(client: Client, flags: argparse.Namespace) -> int:
    with explained(flags.host):
        if flags.enable_schedule:
            client.enable_recurring_run(flags.enable_schedule)
            print(f"schedule {flags.enable_schedule} enabled")
        elif flags.disable_schedule:
            client.disable_recurring_run(flags.disable_schedule)
            print(f"schedule {flags.disable_schedule} disabled")
        else:
            client.delete_recurring_run(flags.delete_schedule)
            print(f"schedule {flags.delete_schedule} deleted")
    return 0


def _wait(client: Client, flags: argparse.Namespace, run_id: str, wanted: str = "SUCCEEDED") -> int:
    hint = f"the run goes on: --watch {run_id} follows it, --terminate {run_id} ends it"
    with explained(flags.host), _interruptible(hint):
        run = watch.watch(client, run_id)
    reason = watch.failure(run) if run.state == "FAILED" else ""
    print(f"run {run_id} {run.state}" + (f": {redact(reason)}" if reason else ""))
    return 0 if run.state == wanted else 1


@contextlib.contextmanager
def _interruptible(hint: str) -> Iterator[None]:
    """End with 130 on Ctrl-C, and say how to go on: the same command once more would make a second run."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted: {hint}", file=sys.stderr)
        raise SystemExit(130) from None


def _print_plugin(name: str, output: Any) -> None:
    for entry in (output.entries or {}).values():
        if entry.render_type == "URL":
            print(f"{name} {entry.value}")
    if output.state == "PLUGIN_FAILED":
        print(f"{PROGRAM}: {name}: {redact(str(output.state_message))}", file=sys.stderr)
