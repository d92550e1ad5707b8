# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What PHP-FPM of a web node needs around it; systemd calls most of it.

fpm prepare        before a start: number of workers, pools, no compiled copies of what can have changed, no warm flag
fpm reload PID     new workers with a new configuration; returns when they serve
fpm warmup         compile the release through PHP-FPM, have each worker make a page, then say in /run/moodle-fleet/warm that it is done
fpm status         JSON: workers, active, queue, idle
idle [SECONDS]     the same, and exit status 0 as soon as no request is being served, 1 when that takes longer
"""

from __future__ import annotations

import json
import math
import os
import pwd
import shutil
import signal
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONFIG = Path("/etc/moodle-fleet/fpm.json")
# Tenants with a Unix user of their own, and its number.
USERS = Path("/etc/moodle-fleet/tenants.users")
RUN = Path("/run/moodle-fleet")
OPCACHE = Path("/var/cache/moodle-fleet/opcache")
SOCKET = "/run/php/moodle.sock"
# Makes a page of a tenant. The role `tenants` brings it.
VISIT = Path("/usr/lib/moodle-fleet/visit.php")
VISIT_SECONDS = 5
STATUS_SOCKET = "/run/php/moodle-status.sock"
OWN_SOCKETS = "/run/php/tenant-"
# Whoever may connect to a pool may run code as its user: nginx alone. OPcache asks in them whether the user may read a file that it has
# compiled, or whoever knows a path would get its content. APCu knows no users, so it is closed there: its functions go on working where it
# is only switched off.
OWN_POOL = """
[tenant-%(name)s]
user = %(user)s
group = %(user)s
listen = %(socket)s
listen.owner = root
listen.group = moodle-web
listen.mode = 0660
listen.backlog = 1024
pm = ondemand
pm.max_children = %(workers)d
pm.process_idle_timeout = 10s
pm.max_requests = 10000
request_terminate_timeout = %(request_timeout)ds
request_slowlog_timeout = %(slow_seconds)ds
slowlog = /var/log/moodle-fleet/php-slow.log
catch_workers_output = yes
decorate_workers_output = no
env[MOODLE_FLEET_TENANTS] = /etc/moodle-fleet/tenants/%(name)s.php
php_admin_flag[opcache.validate_permission] = on
php_admin_flag[apc.enabled] = off
php_admin_value[disable_functions] = %(closed)s
"""
APCU = ("add", "cache_info", "cas", "clear_cache", "dec", "delete", "entry", "exists", "fetch", "inc", "key_info", "sma_info", "store")


# -- FastCGI: the little that one request needs ------------------------------------------------------------------

def _pair(name: str, value: str) -> bytes:
    out = b""
    for text in (name, value):
        size = len(text.encode())
        out += struct.pack("!B", size) if size < 128 else struct.pack("!I", size | 0x80000000)
    return out + name.encode() + value.encode()


def _record(kind: int, data: bytes) -> bytes:
    return struct.pack("!BBHHBB", 1, kind, 1, len(data), 0, 0) + data


def exchange(path: str, script: str, body: bytes, timeout: float, extra: dict) -> tuple[bytes, bytes, bytes]:
    """Send one request to the pool behind a socket: headers, content and errors of the answer."""
    params = {
        "REQUEST_METHOD": "POST" if body else "GET",
        "SCRIPT_FILENAME": script,
        "SCRIPT_NAME": script,
        "REQUEST_URI": script,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_PROTOCOL": "HTTP/1.1",
        **extra,
    }
    message = _record(1, struct.pack("!HB5x", 1, 0))
    message += _record(4, b"".join(_pair(*item) for item in params.items())) + _record(4, b"")
    for start in range(0, len(body), 60000):
        message += _record(5, body[start:start + 60000])
    message += _record(5, b"")
    out = {6: b"", 7: b""}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.sendall(message)
        stream = connection.makefile("rb")
        while header := stream.read(8):
            _version, kind, _number, size, padding, _reserved = struct.unpack("!BBHHBB", header)
            data = stream.read(size + padding)[:size]
            if kind == 3:
                break
            out[kind] = out.get(kind, b"") + data
    head, _separator, content = out[6].partition(b"\r\n\r\n")
    return head, content, out[7]


def request(path: str, script: str, body: bytes = b"", query: str = "", timeout: float = 5.0) -> dict:
    """Send one request and return its JSON answer."""
    head, content, errors = exchange(path, script, body, timeout, {"QUERY_STRING": query})
    try:
        answer = json.loads(content)
    except ValueError:
        raise SystemExit("PHP-FPM did not answer %s with JSON: %r %r" % (script, head[:200], (content or errors)[:300])) from None
    if b"Status: 5" in head:
        raise SystemExit("PHP-FPM could not serve %s: %s" % (script, answer))
    return answer


# -- The size of this node ---------------------------------------------------------------------------------------

def _limits(proc: Path, sys_fs: Path, controller: str, v1_name: str, v2_name: str) -> list[str]:
    """The contents of a limit's file for this process's group and all groups above, cgroup v1 and v2."""
    found = []
    for line in (proc / "self/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        if controllers == "":
            roots, name = [sys_fs, sys_fs / "unified"], v2_name
        elif controller in controllers.split(","):
            roots, name = [sys_fs / controllers, sys_fs / controller], v1_name
        else:
            continue
        here = Path(path)
        for root in roots:
            # In a container the path is the host's; the walk ends at the root, which is the container's own group.
            for folder in (here, *here.parents):
                file = root / str(folder).lstrip("/") / name
                try:
                    found.append(file.read_text().strip())
                except OSError:
                    continue
    return found


def cpus(proc: Path = Path("/proc"), sys_fs: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs this process may use: those of the machine, or less where a limit says so."""
    count = float(len(os.sched_getaffinity(0)))
    for text in _limits(proc, sys_fs, "cpu", "cpu.cfs_quota_us", "cpu.max"):
        quota, _separator, period = text.partition(" ")
        if quota not in ("max", "-1") and quota.isdigit():
            # cgroup v1 keeps the period in a file of its own; it is 100 ms everywhere we know of.
            count = min(count, int(quota) / int(period or 100000))
    return count


def memory_mb(proc: Path = Path("/proc"), sys_fs: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory this process may use: that of the machine, or less where a limit says so."""
    total = next(int(line.split()[1]) for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    sizes = [total // 1024]
    sizes += [
        int(text) // 1048576
        for text in _limits(proc, sys_fs, "memory", "memory.limit_in_bytes", "memory.max")
        if text.isdigit()
    ]
    return min(sizes)


def own_users(listing: Path = USERS) -> dict[str, int]:
    """Tenants with a Unix user of their own, and its number."""
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    return {name: int(number) for name, number in (line.rstrip(";").split() for line in lines)}


def own_pools(config: dict, number: int, users: dict[str, int]) -> str:
    """The pools of those tenants. The balancer sends the node as many requests at a time as it has workers, whosever they are: so each
    may have as many, and all together are no more at work."""
    values = {key: config[key] for key in ("request_timeout", "slow_seconds")}
    values |= {"workers": config["own_workers"] or number, "closed": ",".join(f"apcu_{word}" for word in APCU)}
    return "; Written at each start and reload.\n" + "".join(
        OWN_POOL % {**values, "name": name, "user": uid, "socket": f"{OWN_SOCKETS}{name}.sock"} for name, uid in users.items()
    )


def workers(config: dict, cpu: float, memory: int, own: bool = False) -> int:
    """As many as the CPU can use, as long as memory holds them. At least 2: one long request must not block a node.

    With ``own`` pools beside the shared one, whose workers stay while they are idle, each needs memory twice.
    """
    if config["workers"]:
        return config["workers"]
    by_cpu = max(4, math.ceil(cpu * config["workers_per_cpu"]))
    by_memory = (memory - config["reserved_memory_mb"]) // (config["worker_memory_mb"] * (2 if own else 1))
    return max(2, min(by_cpu, by_memory))


# -- Commands ----------------------------------------------------------------------------------------------------

def forget_unpinned(config: dict, cache: Path = OPCACHE) -> None:
    """Drop compiled copies of all but the releases and what was made with them from the file cache: timestamps are not checked,
    and what is outside of a release can have changed under its path."""
    made = Path(config["made_root"])
    keep = [Path(config["code_root"]).resolve().parent, made]
    for folder in cache.iterdir() if cache.is_dir() else ():
        _keep(folder, [path.parts[1:] for path in keep])
        for copy in folder.joinpath(*made.parts[1:]).rglob("*.bin"):
            source = Path("/", copy.relative_to(folder)).with_suffix("")
            if not source.exists() or source.stat().st_mtime >= copy.stat().st_mtime:
                copy.unlink()


def _keep(folder: Path, paths: list[tuple[str, ...]]) -> None:
    """Empty a folder but for these paths below it."""
    if () in paths:
        return
    for other in folder.iterdir() if folder.is_dir() else ():
        inner = [path[1:] for path in paths if path[0] == other.name]
        if inner:
            _keep(other, inner)
        elif other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


def write(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)


def write_workers(config: dict) -> int:
    RUN.mkdir(mode=0o755, exist_ok=True)
    # A pool whose user is missing would keep PHP-FPM from starting.
    known = {one.pw_uid for one in pwd.getpwall()}
    users = {name: uid for name, uid in own_users().items() if uid in known}
    number = workers(config, cpus(), memory_mb(), bool(users))
    write(RUN / "workers.conf", "pm.max_children = %d\n" % number)
    write(RUN / "pools.conf", own_pools(config, number, users))
    return number


def prepare(config: dict) -> None:
    number = write_workers(config)
    (RUN / "warm").unlink(missing_ok=True)
    forget_unpinned(config)
    print("%d workers" % number)


def status(full: bool = False) -> dict:
    return request(STATUS_SOCKET, "/status", query="json&full" if full else "json")


def pids() -> set[int]:
    return {process["pid"] for process in status(full=True)["processes"]}


def reload(config: dict, pid: int) -> None:
    """Reload, and wait for new workers: until then old ones, or none while requests are being finished, serve."""
    write_workers(config)
    forget_unpinned(config)
    before = pids()
    os.kill(pid, signal.SIGUSR2)
    deadline = time.monotonic() + config["stop_timeout"] + 10
    while time.monotonic() < deadline:
        time.sleep(0.02)
        try:
            now = pids()
        except (OSError, SystemExit):
            continue
        if now and not now & before:
            return
    raise SystemExit("PHP-FPM has no new workers %d s after the reload" % (config["stop_timeout"] + 10))


def warmup(config: dict) -> None:
    script = "/usr/lib/moodle-fleet/warmup.php"
    body = json.dumps({"root": config["code_root"], "globs": config["warmup_globs"]}).encode()
    # A node in service may have no free worker for a while.
    answer = request(SOCKET, script, body, timeout=110)
    missing = answer.pop("missing")
    start = time.monotonic()
    for path in missing:
        exchange(SOCKET, script, b"", 30, {"MOODLE_FLEET_FILE": path, "QUERY_STRING": ""})
    answer["compiled"] = len(missing)
    if VISIT.exists():
        answer["visited"] = visit(config["code_root"], status()["total processes"])
    answer["milliseconds"] += round((time.monotonic() - start) * 1000)
    write(RUN / "warm", answer["release"] + "\n")
    print(json.dumps(answer))


def visit(root: str, number: int) -> int:
    """A page in each of so many workers, all at once so that each gets one; returns how many were made.

    A tenant that cannot be reached says nothing about this node, so none is no error.
    """
    def one(_number: int) -> bool:
        try:
            extra = {"MOODLE_FLEET_ROOT": os.path.realpath(root), "QUERY_STRING": ""}
            _head, content, _errors = exchange(SOCKET, str(VISIT), b"", VISIT_SECONDS, extra)
        except OSError:
            return False
        return b"\nmade\n" in content

    with ThreadPoolExecutor(number) as pool:
        return sum(pool.map(one, range(number)))


def own_requests(sockets: Path = Path("/proc/net/unix")) -> int:
    """Requests that own pools serve or are yet to serve: nginx has a connection for each. Asking a pool would start a worker of it."""
    return sum(
        len(words) == 8 and words[7].startswith(OWN_SOCKETS) and not int(words[3], 16) & 0x10000
        for words in (line.split() for line in sockets.read_text(encoding="utf-8", errors="replace").splitlines()[1:])
    )


def summary() -> dict:
    now = status()
    active = now["active processes"] + own_requests()
    return {
        "workers": now["total processes"],
        "active": active,
        "queue": now["listen queue"],
        "idle": active == 0 and now["listen queue"] == 0,
    }


def wait_idle(seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        now = summary()
        if now["idle"] or time.monotonic() >= deadline:
            print(json.dumps(now))
            return 0 if now["idle"] else 1
        time.sleep(0.1)


def main(name: str, args: list[str]) -> int:
    if name == "idle":
        return wait_idle(float(args[0]) if args else 0)
    config = json.loads(CONFIG.read_text())
    if args == ["prepare"]:
        prepare(config)
    elif args[:1] == ["reload"] and len(args) == 2:
        reload(config, int(args[1]))
    elif args == ["warmup"]:
        warmup(config)
    elif args == ["status"]:
        print(json.dumps(summary()))
    else:
        print(__doc__, file=sys.stderr)
        return 64
    return 0


if __name__ == "__main__":
    sys.exit(main(os.path.basename(sys.argv[0]), sys.argv[1:]))
