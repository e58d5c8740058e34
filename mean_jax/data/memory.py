"""How much memory a process can have: what the machine can spare, within what the process's control groups allow."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP, _CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Returns the bytes that can be had, pages of files that nobody needs included; None where only Linux would tell.

    Control groups limit pages of files too: their limit counts where it is below what the machine can spare.
    """
    lines = _MEMINFO.read_text().splitlines() if _MEMINFO.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit = memory_limit(_CGROUP.read_text(), _CGROUP_ROOT) if _CGROUP.is_file() else None
    return min([*found[:1], *([] if limit is None else [limit])], default=None)


def memory_limit(cgroup_text: str, root: Path) -> int | None:
    """Returns the bytes that the control groups of a process allow it, page cache included; None if they set no limit.

    Args:
      cgroup_text: /proc/self/cgroup.
      root: where the groups are mounted, in version 2 or in version 1 with one folder per controller.
    """
    limits = []
    for line in cgroup_text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents):  # a limit of a group holds for all groups in it
            file = group / name
            if group.is_relative_to(top) and file.is_file() and (text := file.read_text().strip()) != "max":
                limits.append(int(text))
    # Version 1 says "no limit" by a number near the largest.
    return min((limit for limit in limits if limit < 1 << 60), default=None)
