"""What the processor gives this process: cores it may use, and whether bfloat16 products run in hardware."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

FAST_BF16 = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Names in /proc/cpuinfo of instructions that multiply bfloat16: Intel and AMD, and `bf16` of Arm."""


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: the smaller of its affinity and its cgroup's quota, at least 1.

    A container limited to 2 cores of a large machine sees all of them, and threads for all of them only get in each
    other's way. `root` is where /proc and /sys are looked for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """Cores granted by the cgroups (v2 and v1) that the process is in, and by those above them."""
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        folder = mount / path.lstrip("/")
        quotas += [read(one) for one in (folder, *folder.parents) if one.is_relative_to(mount)]
    return [quota for quota in quotas if quota > 0]


def _quota_v2(folder: Path) -> float:
    words = _read(folder / "cpu.max").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else 0.0


def _quota_v1(folder: Path) -> float:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else 0.0


@cache
def fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 in hardware; without, such products are several times slower."""
    lines = _read(cpuinfo).splitlines()
    named = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
    return bool(named & FAST_BF16)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
