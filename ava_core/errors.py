"""The errors a user can cause or mend, and the exit code each one ends a step with.

Anything else that escapes a step is a defect of ours: it exits 1 as well, and its traceback is in the log.
"""


def one_line(text: str) -> str:
    """Line breaks as `\\n`, and what else can't be printed as its escape: a value must not tear a message apart, nor
    tell a terminal what to do.
    """
    whole = r"\n".join(text.splitlines())
    return whole if whole.isprintable() else "".join(map(_printable, whole))


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; the name of its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def typed_line(error: BaseException) -> str:
    """`TYPE: first line`, of exceptions that nobody expected; the type alone where it says nothing."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


def shorten(text: str, most: int = 200) -> str:
    """A text that is longer than `most` characters, cut there, with its whole length behind; any other as it is."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


class AvaError(Exception):
    """A failure in the work. The message is one line: the thing, the value, and the way out."""

    exit_code = 1


class ConfigError(AvaError):
    """A wrong key, type, range or flag, refused before any work. One line per fault.

    Args:
        faults: the lines to show, each complete in itself.
    """

    exit_code = 2

    def __init__(self, *faults: str) -> None:
        self.faults = tuple(one_line(fault) for fault in faults)
        super().__init__("\n".join(self.faults))


class ParityError(AvaError):
    """An exported model that is further from the one it was made from than it may be. One line per fault."""


class IntegrityError(AvaError):
    """An input whose bytes are not the ones that its manifest promises."""
