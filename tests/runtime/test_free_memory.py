"""Free memory of made-up machines and containers, by hand."""

import pytest

from inc_mp_plugin.runtime.free_memory import free_memory

MEMINFO = "MemTotal:       16000 kB\nMemFree:         100 kB\nMemAvailable:    8000 kB\n"
UNLIMITED = "9223372036854771712\n"  # of version 1
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


def v2(folder, limit, use, active=0, inactive=0):
    stat = f"anon 7\nfile 9\nactive_file {active}\ninactive_file {inactive}\n"
    names = {"memory.max": f"{limit}\n", "memory.current": f"{use}\n", "memory.stat": stat}
    return {f"{folder}/{name}": text for name, text in names.items()}


def v1(folder, limit, use, active=0, inactive=0):
    # What lies in the group itself is told beside what lies in those below it, too.
    stat = f"active_file 1\ntotal_active_file {active}\ntotal_inactive_file {inactive}\n"
    names = {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{use}\n", "memory.stat": stat}
    return {f"{folder}/{name}": text for name, text in names.items()}


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        (None, {}, 8000 * 1024),
        ("0::/\n", {}, 8000 * 1024),
        ("0::/\n", v2(V2, 5000, 3000), 2000),
        ("0::/\n", v2(V2, 5000, 3000, 400, 500), 2900),
        ("0::/\n", v2(V2, 5000, 6000), 0),
        ("0::/\n", v2(V2, "max", 3000), 8000 * 1024),
        ("0::/\n", v2(V2, 10**12, 3000), 8000 * 1024),
        ("0::/a/b\n", v2(f"{V2}/a/b", "max", 10) | v2(f"{V2}/a", 900, 30), 870),
        ("0::/a/b\n", v2(f"{V2}/a/b", 500, 10) | v2(f"{V2}/a", 900, 30), 490),
        ("0::/../host/path\n", v2(V2, 500, 10), 490),
        ("5:cpu:/a\n4:memory:/a\n0::/\n", v1(f"{V1}/a", 700, 100, 20, 5) | v1(V1, UNLIMITED, 100), 625),
        ("4:memory,hugetlb:/docker/123\n", v1(V1, 700, 100), 600),
        ("5:cpu:/a\n", v1(f"{V1}/a", 700, 100), 8000 * 1024),
    ],
    ids=[
        *("no groups", "no limit file", "a limit", "pages of files", "exceeded", "unlimited"),
        *("more than there is", "a group around", "the own group", "another name space"),
        *("version 1", "version 1 in a container", "a group of cores"),
    ],
)
def test_the_least_counts(tmp_path, group, files, expected):
    files = {"proc/meminfo": MEMINFO, **files} | ({"proc/self/cgroup": group} if group else {})
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == expected


def test_where_linux_does_not_say_it_is_not_known(tmp_path):
    assert free_memory(tmp_path) is None
