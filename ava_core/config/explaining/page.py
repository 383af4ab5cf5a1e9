"""The page of all settings, in Markdown: `python -m ava_core.config.explaining.page --output docs/settings.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ava_core.config.explaining.settings import Setting, all_settings, inherits, value_words
from ava_core.config.schema import FINE_TUNINGS
from ava_core.errors import AvaError
from ava_core.files import write_whole

COMMAND = "python -m ava_core.config.explaining.page --output docs/settings.md"
_HEADER = f"""# Settings

Every key of `params.yaml`, written from the code by `{COMMAND}`.
`ava config explain KEY` prints the same of one key, `ava config show --explain` under each value of this folder. Null
in a file means "as the layers below say"; `--set key=null` sets null.

*Reruns*: the steps whose key holds the setting. What takes their outputs runs again if those change. `gate` and
`register` look outside of their folders and always run.
"""


def render() -> str:
    """The page."""
    settings = list(all_settings().values())
    top = [setting for setting in settings if "." not in setting.key]
    parts = [_HEADER, *_table([setting for setting in top if not setting.is_section])]
    for section in (setting for setting in top if setting.is_section):
        inside = [setting for setting in settings if setting.key.startswith(f"{section.key}.")]
        parts += [f"\n## {section.key}\n", section.meaning + "\n"]
        if section.key in FINE_TUNINGS:
            parts.append("What isn't listed here is as in `train`.\n")
            inside = [setting for setting in inside if not inherits(setting.key)]
        parts += _table(inside)
    return "\n".join(parts) + "\n"


def _table(settings: Sequence[Setting]) -> Iterator[str]:
    yield "| key | takes | default | meaning |"
    yield "|---|---|---|---|"
    for setting in settings:
        if setting.is_section:
            yield f"| **`{setting.key}`** | section | | {_cell(setting.meaning)} |"
        else:
            yield f"| `{setting.key}` | {_cell(_takes(setting))} | {_default(setting)} | {_cell(_meaning(setting))} |"


def _takes(setting: Setting) -> str:
    return f"{setting.shape.words}; unit: {setting.unit}" if setting.unit else setting.shape.words


def _default(setting: Setting) -> str:
    if setting.default_words == value_words(setting.default):
        return f"`{_cell(setting.default_words)}`"
    return _cell(setting.default_words)


def _meaning(setting: Setting) -> str:
    parts = [setting.meaning]
    if setting.presets:
        values = ", ".join(f"{name} {value_words(value)}" for name, value in setting.presets.items())
        parts.append(f"*Presets*: {values}.")
    if setting.reruns != "nothing":
        parts.append(f"*Reruns*: {setting.reruns}.")
    return " ".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog=COMMAND.partition(" --")[0], description="Write the page of all settings.")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    flags = parser.parse_args(arguments)
    try:
        write_whole(flags.output, render())
    except (AvaError, OSError) as error:
        print(error, file=sys.stderr)
        return AvaError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
