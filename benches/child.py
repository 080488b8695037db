"""A function of the benches in a fresh Python process: for clean figures, for limits, and for all between processes.

`Child("benches.sharing:write", path=...)` starts `python -m benches.child`. The function's first argument is its gate:
it calls it when it is prepared, and goes on when the parent says `go()`; so several children start their timed part
together. It returns something that JSON can hold.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

Gate: TypeAlias = Callable[[], None]

ROOT = Path(__file__).parent.parent
RESULT_TIMEOUT = 300.0
_READY = "ready\n"


class ChildFailedError(Exception):
    """The child process ended without a result; its traceback is on standard error."""


class Child:
    """One function in one process of its own; leaving the `with` block ends the process."""

    def __init__(self, function: str, **arguments: object) -> None:
        """Start the process.

        Args:
            function: `module:name` of a function that takes a gate first.
            arguments: The function's keyword arguments; anything JSON can hold.
        """
        self._name = function
        # An installed package has its bytecode; a checkout must be allowed to write it, or each import compiles anew.
        environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            [sys.executable, "-m", "benches.child", function, json.dumps(arguments)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def wait_ready(self) -> None:
        """Wait until the function stands at its gate."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != _READY:
            raise ChildFailedError(self._name)

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    def go(self) -> None:
        """Open the gate."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> Any:
        """Wait for the end and return what the function returned."""
        output, _ = self._process.communicate(timeout=RESULT_TIMEOUT)
        if self._process.returncode != 0:
            raise ChildFailedError(self._name)
        return json.loads(output)


def run(function: str, **arguments: object) -> Any:
    """Run one function in a fresh process, from gate to end, and return its result."""
    with Child(function, **arguments) as child:
        child.wait_ready()
        child.go()
        return child.result()


def find(function: str) -> Any:
    """Return what `module:name` names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _wait_at_gate() -> None:
    sys.stdout.write(_READY)
    sys.stdout.flush()
    sys.stdin.readline()


def _main() -> None:
    result = find(sys.argv[1])(_wait_at_gate, **json.loads(sys.argv[2]))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    _main()
