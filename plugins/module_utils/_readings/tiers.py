# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads how busy databases, caches and shared files are, from their own figures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._readings import reader
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling import tiers
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import resp

TIMEOUT = 3.0
# The number of running threads changes all the time: the median of so many looks counts.
LOOKS = 5
PAUSE = 0.02


def database(given: reader.Access, server: str) -> dict[str, float]:
    """The figures of one database server.

    :raises ReadError: when it can't be read.
    """
    connection = reader.connect(given, server, TIMEOUT)
    try:
        with connection.cursor() as cursor:
            # MariaDB's default size of its thread pool is the number of its CPUs, also where the pool is not used.
            cursor.execute("SELECT @@thread_pool_size, @@max_connections")
            cpus, connections = cursor.fetchone()
            running = []
            for look in range(LOOKS):
                time.sleep(PAUSE if look else 0)
                cursor.execute("SHOW GLOBAL STATUS WHERE Variable_name IN ('Threads_running', 'Threads_connected', 'Uptime',"
                               " 'Innodb_row_lock_time')")
                status = {str(name).lower(): float(value) for name, value in cursor.fetchall()}
                running.append(status["threads_running"] - 1)  # without this one
        return {
            "taken": time.time(), "up": status["uptime"], "cpus": float(cpus), "connections": float(connections),
            "running": sorted(running)[LOOKS // 2], "connected": status["threads_connected"],
            "lock_seconds": status["innodb_row_lock_time"] / 1000.0,
        }
    except (reader.pymysql.MySQLError, OSError, KeyError, ValueError, TypeError) as exc:
        raise reader.ReadError(f"the database server {server} does not tell its status: {exc}") from exc
    finally:
        connection.close()


def cache(given: reader.Access, place: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one Redis.

    :raises ReadError: when it can't be read.
    """
    try:
        with resp.Connection(place["host"], int(place["port"]), reader.USER, given.password, bool(place.get("tls")), TIMEOUT) as redis:
            text = str(redis.call("INFO"))
        info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return {
            "taken": time.time(), "up": float(info["uptime_in_seconds"]),
            "cpu": float(info["used_cpu_user"]) + float(info["used_cpu_sys"]), "evicted": float(info["evicted_keys"]),
            "blocked": float(info["blocked_clients"]), "memory": float(info["used_memory"]), "most": float(info["maxmemory"]),
            "keeps": float(info["maxmemory_policy"] == "noeviction"),
        }
    except (resp.RedisError, OSError, KeyError, ValueError) as exc:
        raise reader.ReadError(f"{place['host']}:{place['port']} does not tell its state: {exc}") from exc


def files(addresses: Sequence[str]) -> list[float]:
    """Seconds that the shared files took to answer, from the health page of each web node that says so."""
    import concurrent.futures
    import http.client

    def ask(address: str) -> float | None:
        connection = http.client.HTTPConnection(address, 80, timeout=TIMEOUT)
        try:
            connection.request("GET", "/healthz")
            found = json.loads(connection.getresponse().read(65536)).get("files_seconds")
            return float(found) if isinstance(found, (int, float)) and found >= 0 else None
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            return None
        finally:
            connection.close()

    if not addresses:
        return []
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(32, len(addresses))) as pool:
        return [one for one in pool.map(ask, addresses) if one is not None]


def read(given: reader.Access, addresses: Sequence[str], before: Mapping[str, Any], others: Sequence[tiers.Tier] = ()) -> dict[str, Any]:
    """A reading of all tiers; ``before`` is the last one, ``others`` were read elsewhere. What can't be read is named and stands for nothing."""
    counters: dict[str, dict[str, float]] = {}
    failures: dict[str, str] = {}
    found: list[tiers.Tier] = []
    old = before.get("counters", {})

    def add(name: str, look: Any, judge: Any) -> None:
        try:
            counters[name] = look()
        except reader.ReadError as exc:
            failures[name] = str(exc)
            return
        try:
            one = judge(counters[name], old.get(name))
        except (KeyError, TypeError):
            one = judge(counters[name], None)  # the last reading is another version's
        found.append(tiers.Tier(name, round(one.share, 4), one.text))

    for server in sorted({tenant["server"] for tenant in given.tenants} | ({"default"} & set(given.servers))):
        add("database" if server == "default" else f"database {server}", lambda server=server: database(given, server), tiers.database)
    for place in given.caches:
        add(f"cache {place['host']}:{place['port']}", lambda place=place: cache(given, place), tiers.cache)
    waited = files(addresses)
    if waited:
        found.append(tiers.files(waited))
    found = tiers.together(found, others)
    taken = time.time()
    return {
        "taken": taken, "tiers": [asdict(one) for one in found], "full": tiers.standing(found, taken, before),
        "failures": failures, "counters": counters,
    }
