"""`python -m pipelines.submit --host http://HOST:PORT --data-uri s3://BUCKET/raw [--params params.yaml] [--wait]`."""

from collections.abc import Sequence

from pipelines import command_line
from pipelines.submit import flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do what it asks for; 1 if a run that was waited for didn't succeed."""
    parsed = flags.parse(arguments)
    # KFP's client takes seconds to import, and a wrong flag is told before.
    from pipelines.submit.actions import carry_out

    return carry_out(parsed)


if __name__ == "__main__":
    command_line.run(flags.PROGRAM, main)
