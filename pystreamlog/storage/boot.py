"""Which boot of the machine this is: what was not synced before another boot may be gone."""

from __future__ import annotations

import functools
import sys

__all__ = ["boot_id"]


@functools.cache
def boot_id() -> bytes:
    """16 bytes that change with every boot of the machine; zeros where the system does not tell."""
    if sys.platform == "linux":
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            text = file.read()
        found = bytes.fromhex(text.strip().replace("-", ""))
    elif sys.platform == "darwin":
        import hashlib  # noqa: PLC0415 - not needed elsewhere, and opening a log shall be quick
        import subprocess  # noqa: PLC0415 - the same

        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        text = subprocess.run(command, capture_output=True, check=True, timeout=10).stdout.decode()  # noqa: S603 - fixed
        found = hashlib.blake2b(text.strip().encode(), digest_size=16).digest()
    else:
        found = bytes(16)
    return found
