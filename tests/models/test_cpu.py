"""Cores from affinity and cgroup quota, bfloat16 from the processor's flags; on made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from albireo.models.cpu import available_cores, fast_bf16

HERE = len(os.sched_getaffinity(0))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == HERE
    unlimited = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}
    assert available_cores(tree(tmp_path, unlimited)) == HERE


@pytest.mark.parametrize("where", ["a/b", "a", ""])
def test_the_tightest_quota_above_the_process_counts(where: str, tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n", f"sys/fs/cgroup/{where}/cpu.max": "90000 100000\n"}
    assert available_cores(tree(tmp_path, files)) == 1


def test_first_version_of_cgroups(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    assert available_cores(tree(tmp_path, files)) == 1


@pytest.mark.parametrize(
    ("line", "fast"),
    [("flags\t\t: fpu avx2 avx512f avx512_bf16", True), ("flags : fpu amx_bf16", True), ("Features : fp bf16", True),
     ("flags : fpu avx2 avx512f avx512bw", False), ("model name : bf16 maker", False)],
)  # fmt: skip
def test_bf16_needs_its_instruction(line: str, fast: bool, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\n{line}\n")
    assert fast_bf16(path) is fast
