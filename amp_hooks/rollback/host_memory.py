"""How much memory this machine has left for copies of a run."""

from __future__ import annotations

from pathlib import Path

# Within a container's limit the kernel counts files that it could drop.
_V2 = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
_V1 = (
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
)
_STAT = ("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat")


def free_host_bytes(root: str = "/") -> int | None:
    """Bytes that a process can still use before the OOM killer comes.

    The smaller of what the machine and the container (cgroup, version 1 or 2) have
    left, caches that can be dropped counted as free; None where the system does not
    tell (it is no Linux).

    Args:
        root: Where /proc and /sys are.
    """
    found = [_of_machine(root)]
    for (limit, used), stat in zip((_V2, _V1), _STAT):
        most, now = _number(root, limit), _number(root, used)
        if most is not None and now is not None:
            found.append(max(0, most - now + _field(root, stat, "inactive_file")))
    return min((n for n in found if n is not None), default=None)


def _of_machine(root: str) -> int | None:
    kib = _field(root, "/proc/meminfo", "MemAvailable:")
    return kib * 1024 if kib else None


def _field(root: str, path: str, name: str) -> int:
    for line in _text(root, path).splitlines():
        if line.startswith(f"{name} ") or line.startswith(f"total_{name} "):
            return int(line.split()[1])
    return 0


def _number(root: str, path: str) -> int | None:
    text = _text(root, path).strip()
    return int(text) if text.isdigit() else None  # 'max' is no limit


def _text(root: str, path: str) -> str:
    try:
        return Path(root, path.lstrip("/")).read_text()
    except OSError:
        return ""
