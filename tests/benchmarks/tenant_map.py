# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finding the tenant among 1, 130 and 5,000: in PHP (config.php and its map) and in nginx, as a share of a page."""

from __future__ import annotations

import argparse
import http.client
import random
from collections import defaultdict

from ansible_collections.elearning.moodle_fleet.plugins.filter.tenants_files import FilterModule
from measure import Cpu, median, report, say
from nodes import HERE, Fleet, WebNode
from pages import Side, cell, forwarded, log_in, page_paths
from site_client import Target

SIZES = (1, 130, 5000)
FILES = 4000


def tenants(count: int) -> list[dict]:
    """So many tenants, with two names each."""
    return [
        {"name": f"t{number}", "hosts": [f"t{number}.example.org", f"www.t{number}.example.org"], "title": f"Tenant {number}",
         "admin": {"user": "admin", "email": "admin@example.org"}}
        for number in range(count)
    ]


def maps(node: WebNode, count: int) -> dict[str, str]:
    """Write the two maps for so many tenants into a folder of the node; returns the nginx map's text too."""
    fleet = {
        "dbtype": "mariadb", "dbhost": "10.0.0.1", "dbport": 3306, "redis_host": "10.0.0.2", "redis_port": 6379, "muc_host": "10.0.0.2",
        "muc_port": 6380, "balancer_networks": ["10.0.0.0/24"], "shared_root": "/srv/moodledata", "local_root": "/var/cache/moodle-fleet",
        "library": "/usr/lib/moodle-fleet", "session_lock_expire": 30, "session_lock_timeout": 60, "local_cache_ttl": 3600,
        "lock_factory": "x",
    }
    made = FilterModule().filters()["tenants_files"](tenants(count), "s" * 40, fleet, public_port=443)
    folder = f"/usr/lib/moodle-fleet/bench-map-{count}"
    node.sh(f"mkdir -p {folder}; cat > {folder}/tenants.php", made["php"])
    # The recipe's own file, without its last statement, which starts Moodle.
    text = node.sh("cat /etc/moodle-fleet/config.php")
    node.sh(f"cat > {folder}/config.php; chmod -R a+rX {folder}", text[: text.rindex("require_once")])
    return {"folder": folder, "map": made["map"]}


def nginx_cpu(node: WebNode, cpu: Cpu, hosts: list[str]) -> float:
    """CPU seconds of a small static file, whose host nginx looks up."""
    connection = http.client.HTTPConnection(node.address, 80, timeout=30)
    before = cpu.read()
    for number in range(FILES):
        connection.request("GET", "/version-none.css", headers={"Host": hosts[number % len(hosts)]})
        answer = connection.getresponse()
        answer.read()
    connection.close()
    return sum(cpu.since(before).values()) / FILES


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `tenant-map`."""
    node = WebNode(fleet, 1)
    node.start()
    node.configure()
    node.sh("cat > /usr/lib/moodle-fleet/tenant-map.php; chmod 644 /usr/lib/moodle-fleet/tenant-map.php",
            (HERE / "tenant_map.php").read_text(encoding="utf-8"))
    made = {count: maps(node, count) for count in SIZES}
    node.restart_php()
    hosts = {count: [host for tenant in tenants(count) for host in tenant["hosts"]] for count in SIZES}
    chance = random.Random(1)
    for names in hosts.values():
        chance.shuffle(names)
    php, nginx, cpu, agent = defaultdict(list), defaultdict(list), Cpu([node.name]), node.agent()
    with fleet.quiet():
        for number in range(given.rounds):
            say(f"  round {number + 1} of {given.rounds} …")
            for count in SIZES:
                job = {"folder": made[count]["folder"], "hosts": hosts[count][:500], "times": 2000}
                php[count].append(agent.call("/usr/lib/moodle-fleet/tenant-map.php", hosts[count][0], job)["microseconds"])
        kept = node.sh("cat /etc/moodle-fleet/tenants.map")
        for _round in range(given.rounds):
            for count in SIZES:
                node.sh("cat > /etc/moodle-fleet/tenants.map; systemctl reload nginx; sleep 0.5", made[count]["map"])
                nginx_cpu(node, cpu, hosts[count])
                nginx[count].append(1e6 * nginx_cpu(node, cpu, hosts[count]))
        node.sh("cat > /etc/moodle-fleet/tenants.map; systemctl reload nginx; sleep 0.5", kept)
        tenant = fleet.tenants[0]
        side = Side("node", Target("node", node.address, tenant["host"],
                                   headers={**forwarded(fleet), "Host": f"{tenant['host']}:{fleet.port}"}),
                    {"web": [node.name]}, fleet.names("database")[0])
        log_in(side, fleet, 1)
        path = page_paths(fleet)["course"]
        cell(side, "course", path, 10, 1)
        before = cpu.read()
        cell(side, "course", path, given.requests, 1)
        page = 1e6 * cpu.since(before)[node.name] / given.requests
    agent.close()
    rows = []
    for count in SIZES:
        rows.append({
            "tenants": count, "config.php µs": median(php[count]), "nginx µs, whole request": median(nginx[count]),
            "more than with 1 tenant µs": median(php[count]) - median(php[1]) + median(nginx[count]) - median(nginx[1]),
            "config.php as share of a course page %": 100 * median(php[count]) / page,
        })
    report("tenant-map", f"Finding the tenant, {fleet.what}", rows, [
        f"A course page costs {page / 1000:.1f} ms of the web node's CPU. config.php: all of it up to where Moodle starts.",
    ])
