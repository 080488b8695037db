"""Commands that run on a terminal: a pseudo-terminal of a given size, keys that are pressed, and what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

__all__ = ["PATIENCE", "Terminal"]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A terminal with a command on it; close it after use.

    Args:
        arguments: Of `python -m pystreamlog`.
        columns: Of the terminal.
        rows: Likewise.

    Attributes:
        process: The command.
        printed: All that it printed.
    """

    def __init__(self, *arguments: str, columns: int = 40, rows: int = 12) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pystreamlog", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - so that Ctrl-C is a signal
        )
        self._slave = slave
        self.printed = ""

    @property
    def mode(self) -> list[int]:
        """Whether it echoes, takes lines, and the like."""
        return termios.tcgetattr(self._slave)[:4]

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def wait_for(self, text: str) -> None:
        """Wait until that was printed."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.printed:
            assert time.monotonic() < deadline, f"{text!r} did not come; there is {self.printed!r}"
            self._read(0.1)

    def end(self, again: bytes = b"") -> int:
        """Wait until the command ends; its exit status.

        Args:
            again: Pressed once a second: a Ctrl-C that comes just before the interpreter begins to read waits for more.
        """
        deadline = time.monotonic() + PATIENCE
        due = time.monotonic() + 1
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end; it printed {self.printed!r}"
            if again and time.monotonic() > due:
                due += 1
                self.press(again)
            self._read(0.1)
        self._read(0)
        return self.process.returncode

    def _read(self, seconds: float) -> None:
        while select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:
                return
            self.printed += data.decode(errors="replace")
            seconds = 0

    @property
    def lines(self) -> list[str]:
        """What was printed, line by line, without what sets colours and the cursor."""
        return [line.rstrip("\r") for line in _SEQUENCE.sub("", self.printed.replace("\x1b[H", "\n")).split("\n")]

    def close(self) -> None:
        """End what runs, and close the terminal."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)
