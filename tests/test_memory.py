"""The memory that a process can have: the machine's and the limits of control groups."""

from pathlib import Path

import pytest

from mean_jax.data import memory


def test_memory_limit_of_version_2(tmp_path):
    inner = tmp_path / "user.slice" / "run.scope"
    inner.mkdir(parents=True)
    assert memory.memory_limit("0::/user.slice/run.scope\n", tmp_path) is None
    (inner / "memory.max").write_text("max\n")
    assert memory.memory_limit("0::/user.slice/run.scope\n", tmp_path) is None
    (inner.parent / "memory.max").write_text("2000\n")
    assert memory.memory_limit("0::/user.slice/run.scope\n", tmp_path) == 2000
    (inner / "memory.max").write_text("1000\n")
    assert memory.memory_limit("0::/user.slice/run.scope\n", tmp_path) == 1000


def test_memory_limit_of_version_1(tmp_path):
    group = tmp_path / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("3000\n")
    (group.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    text = "9:cpu:/other\n4:memory:/job\n0::/\n"
    assert memory.memory_limit(text, tmp_path) == 3000
    (group / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory.memory_limit(text, tmp_path) is None


@pytest.mark.parametrize(
    ("meminfo", "limit", "expected"),
    [
        ("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   18000 kB\n", "max", 18000 * 1024),
        ("MemAvailable: 18000 kB\n", "5000", 5000),
        ("MemAvailable: 0 kB\n", "5000", 0),
        ("MemTotal: 9 kB\n", "max", None),
    ],
)
def test_the_smaller_of_what_the_machine_can_spare_and_what_the_group_may(
    tmp_path, monkeypatch, meminfo, limit, expected
):
    for name, text in (("meminfo", meminfo), ("cgroup", "0::/\n"), ("memory.max", limit)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_CGROUP_ROOT", tmp_path)
    assert memory.available_bytes() == expected


def test_where_the_system_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nowhere")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "nowhere")
    assert memory.available_bytes() is None


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="Linux tells")
def test_this_machine_has_some():
    assert memory.available_bytes() > 1 << 20
