"""What the figures were taken on, in one line."""

import os
import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_MOUNTS = Path("/proc/self/mountinfo")


def cpu_name() -> str:
    """Return the processor's name, as well as the system tells it."""
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def file_system(directory: Path) -> str:
    """Return the type of the file system that holds a directory, such as `ext4`."""
    if not _MOUNTS.exists():
        return "unknown file system"
    place = directory.resolve()
    best, kind = -1, "unknown file system"
    for line in _MOUNTS.read_text().splitlines():
        mount, _, source = line.partition(" - ")
        point = Path(mount.split()[4])
        # Later mounts hide earlier ones on the same point.
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), source.split()[0]
    return kind


def describe(directory: Path) -> str:
    """Return the machine line of the table."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return " · ".join(
        [
            cpu_name(),
            f"{core_count()} cores",
            f"{platform.system()} {platform.release()}",
            python,
            file_system(directory),
        ]
    )
