"""A subject for the tests of turns: cheap, and it writes down when it works."""

import os
import time
from pathlib import Path


class Counting:
    """Appends a line at the beginning and at the end of every turn."""

    def __init__(self, name: str, journal: str, fails_at: int = 0):
        self.name, self.journal, self.fails_at, self.turns = name, Path(journal), fails_at, 0
        if fails_at < 0:
            raise ValueError("never built")

    def turn(self, steps: int) -> dict:
        self.turns += 1
        if self.turns == self.fails_at:
            raise RuntimeError("broke in its turn")
        print("a library prints")
        self._write(f"{self.name} begins")
        time.sleep(0.002 * steps)
        self._write(f"{self.name} ends")
        return {"turn": self.turns}

    def leave(self) -> dict:
        os._exit(7)

    def _write(self, line: str) -> None:
        with self.journal.open("a") as journal:
            journal.write(line + "\n")
