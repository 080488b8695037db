"""What `import pystreamlog` costs a fresh process, beside importing its core dependencies alone."""

import subprocess
import sys

from benches.child import ROOT
from benches.measuring import Line, Settings, alternate

OURS = "pystreamlog"
DEPENDENCIES = "xxhash, attrs, sortedcontainers, msgspec"

_ROUNDS_FACTOR = 3


def _python(code: str) -> str:
    # The current directory comes first on the path of `-c`, so that this works without installing.
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout  # noqa: S603


def import_seconds(names: str) -> float:
    """Return how long `import <names>` takes in a fresh process, in seconds, without the start of Python itself."""
    return float(
        _python(f"import time; start = time.perf_counter(); import {names}; print(time.perf_counter() - start)")
    )


def imported_with_ours(module: str) -> bool:
    """Return whether `import pystreamlog` also imports `module`."""
    return _python(f"import sys, {OURS}; print({module!r} in sys.modules)").strip() == "True"


def compare_importing(settings: Settings) -> list[Line]:
    """Import time, and that asyncio is imported only when it is used."""
    # The first import of each compiles it.
    import_seconds(OURS)
    import_seconds(DEPENDENCIES)
    rounds = settings.rounds * _ROUNDS_FACTOR
    figures = alternate({"ours": lambda: import_seconds(OURS), "peer": lambda: import_seconds(DEPENDENCIES)}, rounds)
    best = {name: min(seconds) * 1e3 for name, seconds in figures.items()}
    return [
        Line(
            "import pystreamlog", best["ours"], best["peer"], "ms", 1.3, at_least=False, note=f"import {DEPENDENCIES}"
        ),
        Line("asyncio imported with it", imported_with_ours("asyncio"), None, "", 0, at_least=False, absolute=True),
    ]


LINES = {"importing": compare_importing}
