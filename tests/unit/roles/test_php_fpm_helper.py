# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The helper beside PHP-FPM: the size of a node, and what leaves the file cache."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "roles/php/files/fpm.py"
spec = importlib.util.spec_from_file_location("moodle_fleet_fpm", SOURCE)
fpm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fpm)

CONFIG = {"workers": 0, "workers_per_cpu": 4, "worker_memory_mb": 96, "reserved_memory_mb": 704}


@pytest.fixture(name="node")
def fixture_node(tmp_path, monkeypatch):
    """A machine with 8 CPUs and 16 GB; the function adds limits to it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\n")

    def node(groups, limits):
        (proc / "self/cgroup").write_text(groups)
        for path, text in limits.items():
            file = cgroup / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return fpm.cpus(proc, cgroup), fpm.memory_mb(proc, cgroup)

    return node


def test_a_machine_without_limits(node):
    assert node("0::/system.slice/php.service\n", {"system.slice/cpu.max": "max 100000\n"}) == (8.0, 16384)


def test_limits_of_cgroup_2_hold_at_every_level(node):
    limits = {"system.slice/cpu.max": "150000 100000\n", "system.slice/php.service/memory.max": "2147483648\n"}
    assert node("0::/system.slice/php.service\n", limits) == (1.5, 2048)


def test_limits_of_cgroup_1_in_a_container(node):
    """The path is the host's and does not exist inside; the root of the mount is the container's own group."""
    groups = "4:memory:/pod/abc\n1:cpu,cpuacct:/pod/abc\n0::/pod/abc\n"
    limits = {
        "cpu,cpuacct/cpu.cfs_quota_us": "40000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "1073741824\n",
    }
    assert node(groups, limits) == (0.4, 1024)


def test_no_limit_in_cgroup_1(node):
    limits = {"cpu/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert node("4:memory:/\n1:cpu:/\n", limits) == (8.0, 16384)


@pytest.mark.parametrize(
    ("cpu", "memory", "given", "expected"),
    [
        (8, 16384, 0, 32),  # the CPU decides
        (8, 2048, 0, 14),  # memory decides
        (0.4, 1024, 0, 3),
        (0.4, 4096, 0, 4),  # one long request must not block a small node
        (1, 256, 0, 2),  # hardly any memory, still two
        (8, 16384, 5, 5),  # told so
    ],
)
def test_workers(cpu, memory, given, expected):
    assert fpm.workers({**CONFIG, "workers": given}, cpu, memory) == expected


def test_own_pools_share_the_nodes_memory_with_the_shared_one():
    assert fpm.workers({**CONFIG, "workers": 0}, 8, 2048, own=True) == 7
    assert fpm.workers({**CONFIG, "workers": 0}, 8, 65536, own=True) == 32


def test_each_own_user_gets_a_pool(tmp_path):
    listing = tmp_path / "tenants.users"
    assert fpm.own_users(listing) == {}
    listing.write_text("acme 1900000001;\nglobex 1900000002;\n")
    config = {"own_workers": 0, "request_timeout": 300, "slow_seconds": 10}
    text = fpm.own_pools(config, 4, fpm.own_users(listing))
    acme, globex = text.split("[tenant-globex]")
    assert "user = 1900000001\n" in acme and "user = 1900000002\n" in globex
    assert "listen = /run/php/tenant-globex.sock\n" in globex
    assert "tenants/globex.php" in globex and "globex" not in acme
    assert "pm.max_children = 4\n" in acme
    assert "pm.max_children = 2\n" in fpm.own_pools({**config, "own_workers": 2}, 4, {"acme": 1})
    assert "[" not in fpm.own_pools(config, 4, {})


def test_requests_of_own_pools_are_counted_by_their_connections(tmp_path):
    sockets = tmp_path / "unix"
    sockets.write_text(
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000: 00000002 00000000 00010000 0001 01 11 /run/php/tenant-acme.sock\n"
        "0000: 00000003 00000000 00000000 0001 03 12 /run/php/tenant-acme.sock\n"
        "0000: 00000003 00000000 00000000 0001 03 13\n"
        "0000: 00000003 00000000 00000000 0001 03 14 /run/php/moodle.sock\n"
    )
    assert fpm.own_requests(sockets) == 1


def test_releases_and_what_was_made_with_them_stay_in_the_file_cache(tmp_path):
    root, made = tmp_path / "moodle/releases/4.5", tmp_path / "data/component"
    root.mkdir(parents=True)
    (tmp_path / "moodle/current").symlink_to("releases/4.5")
    cache = tmp_path / "cache"

    def compiled(path):
        file = cache / "system" / f"{str(path).lstrip('/')}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        return file

    made.mkdir(parents=True)
    for name, age in (("same.php", 100), ("new.php", -100)):
        (made / name).write_text("")
        os.utime(made / name, (time.time() - age,) * 2)
    kept = [compiled(root / "index.php"), compiled(made / "same.php")]
    gone = [compiled(made / "new.php"), compiled(made / "removed.php"), compiled(tmp_path / "data/alpha/bootstrap.php")]
    gone.append(compiled(Path("/etc/moodle-fleet/tenants.php")))
    fpm.forget_unpinned({"code_root": str(tmp_path / "moodle/current"), "made_root": str(made)}, cache)
    assert [file.exists() for file in kept] == [True, True]
    assert [file.exists() for file in gone] == [False] * 4


def test_every_worker_makes_a_page_at_the_same_time(monkeypatch):
    """One after the other a single worker could make them all."""
    together = threading.Barrier(5, timeout=10)

    def answer(path, script, body, timeout, extra):
        together.wait()
        assert (path, script, extra["MOODLE_FLEET_ROOT"]) == (fpm.SOCKET, str(fpm.VISIT), "/")
        return b"Content-Type: text/html", b"<html>\nmade\n</html>", b""

    monkeypatch.setattr(fpm, "exchange", answer)
    assert fpm.visit("/", 5) == 5


def test_a_tenant_that_cannot_be_reached_keeps_no_node_from_serving(monkeypatch):
    answers = iter([(b"Status: 503", b"Please try again", b""), TimeoutError("timed out"), (b"", b"\nmade\n", b"")])

    def answer(*_given):
        given = next(answers)
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(fpm, "exchange", answer)
    assert fpm.visit("/", 3) == 1
