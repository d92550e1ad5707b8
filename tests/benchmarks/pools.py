# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a pool of PHP workers of a tenant's own costs, against the pool that most share: CPU, memory, the first page after idling.

On a web node of the benchmark's, beside the balancer. The same site is asked for through either pool, as a request's header chooses, so
the own pool runs as the same user here: which one makes no difference to what it costs.
"""

from __future__ import annotations

import argparse
import json
import time

from measure import median, report, say, wait_for
from nodes import Fleet, WebNode
from pages import PAGES, Side, forwarded, measure, page_paths, ratios
from site_client import Target

SHARED, OWN = "shared pool", "own pool"
# The most that the fleet is made for.
IDLE = 130
UID = 33
# After which an idle worker ends, and a little more.
IDLE_SECONDS = 13
MEMORY = r"""
import glob, json, re
found = {}
for folder in glob.glob("/proc/[0-9]*"):
    try:
        title = open(folder + "/cmdline").read()
        name = re.match(r"php-fpm: (?:pool (\S+)|(master))", title)
        if name:
            pss = int(re.search(r"^Pss:\s+(\d+)", open(folder + "/smaps_rollup").read(), re.M)[1])
            found.setdefault(name[1] or name[2], []).append(pss / 1024)
    except OSError:
        pass
print(json.dumps(found))
"""


def give_pools(node: WebNode, names: list[str]) -> None:
    """Give the node an own pool for each of these names."""
    node.sh("cat > /etc/moodle-fleet/tenants.users", "".join(f"{name} {UID};\n" for name in names))
    node.restart_php()


def prepare(node: WebNode, tenant: str) -> None:
    """Let a request's header choose the pool."""
    node.sh("mkdir -p /etc/moodle-fleet/tenants && cp -p /etc/moodle-fleet/tenants.php /etc/moodle-fleet/tenants/" + tenant + ".php")
    text = node.sh("cat /etc/nginx/moodle-fleet/site.conf")
    wanted = "map $http_x_bench_own $web_own_user {\n    1 yes;"
    if wanted not in text:
        text = text.replace("map $moodle_tenant $web_own_user {", wanted).replace("    include /etc/moodle-fleet/tenants.users*;\n", "")
    if wanted not in text:
        raise SystemExit("site.conf of the role web has no map by which a pool could be chosen")
    node.sh("cat > /etc/nginx/moodle-fleet/site.conf; systemctl reload nginx", text)
    give_pools(node, [tenant])


def memory(node: WebNode) -> dict[str, list[float]]:
    """Proportional memory of PHP-FPM's processes in MB, by pool."""
    return json.loads(node.sh("python3 -", MEMORY))


def first_pages(fleet: Fleet, sides: list[Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of a page after the pools idled, and of the one after it."""
    path = page_paths(fleet)["course"]
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        say(f"  idle, round {number + 1} of {rounds} …")
        time.sleep(IDLE_SECONDS)
        for side in sides:
            for what in ("after idling", "next"):
                side.visitors[0].close()
                status, _body, seconds = side.visitors[0].get(path)
                if status != 200:
                    raise SystemExit(f"{side.name}: {path} answered {status}")
                found.setdefault(f"{side.name}, {what}", []).append(1000 * seconds)
    return found


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `pools`."""
    node, tenant = WebNode(fleet, 1), fleet.tenants[0]
    node.start()
    node.configure()
    prepare(node, tenant["name"])
    tiers = {"web": [node.name], "database": fleet.names("database"), "cache": fleet.names("cache")}
    headers = {**forwarded(fleet), "Host": f"{tenant['host']}:{fleet.port}"}
    sides = [
        Side(name, Target(name, node.address, tenant["host"], headers={**headers, **more}), tiers, fleet.names("database")[0])
        for name, more in ((SHARED, {}), (OWN, {"X-Bench-Own": "1"}))
    ]
    with fleet.quiet():
        rows, costs = measure(fleet, sides, given.requests, given.rounds, 1)
        crowded = []
        if given.clients > 1:
            crowded = measure(fleet, sides, given.requests, given.rounds, given.clients)[0]
        used = memory(node)
        own = f"tenant-{tenant['name']}"
        if not used.get(own):
            raise SystemExit(f"no worker of the pool {own} is there after its pages: it was not asked")
        seconds = first_pages(fleet, sides, min(3, given.rounds))
        say(f"  {IDLE} idle pools …")
        alone = _idle(node, [])
        many = _idle(node, [f"idle{number:03}" for number in range(IDLE)])
    report("pools", f"CPU of a page through either pool, {fleet.what}", rows + crowded, ["CPU ms: web, database and cache together, a page."])
    report("pools-ratio", f"The same against the {SHARED}", ratios(costs, SHARED))
    report("pools-memory", "Memory of PHP-FPM on the node", [
        {"what": "a worker of the shared pool", "processes": len(used["moodle"]), "MB each": median(used["moodle"])},
        {"what": "a worker of an own pool", "processes": len(used[own]), "MB each": median(used[own])},
        {"what": f"{IDLE} own pools that idle, all", "processes": many[0] - alone[0], "MB each": many[1] - alone[1]},
    ], ["Pss: what processes share counts in parts. That of all PHP-FPM's processes, with as many pools and without."])
    report("pools-idle", "A course page in ms, one client, after the pools idled", [
        {"page": what, "median": median(values), "most": max(values)} for what, values in seconds.items()
    ], [f"Idle for {IDLE_SECONDS} s, after which an own pool has no worker. {', '.join(PAGES)} were asked for before."])


def _idle(node: WebNode, names: list[str]) -> tuple[int, float]:
    """Processes and memory of a PHP-FPM that has just started, with these own pools."""
    give_pools(node, names)
    sockets = "ls /run/php/tenant-*.sock 2>/dev/null | wc -l"
    wait_for("the pools", lambda: int(node.sh(sockets)) == len(names), 30)
    # The warm-up is over: what is left is what idles.
    time.sleep(IDLE_SECONDS)
    used = memory(node)
    return sum(map(len, used.values())), sum(sum(values) for values in used.values())
