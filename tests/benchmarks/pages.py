# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""CPU seconds of a page: a node of the fleet against one stand-alone server, each measure's gain, and freshness."""

from __future__ import annotations

import argparse
import math
import secrets
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from measure import Cpu, median, percentile, report, run, say
from nodes import HERE, Container, Fleet, WebNode, pipe
from site_client import Target, Visitor, health

ALONE = "alone.localhost"
PAGES = ("login", "front", "dashboard", "course")
VARIANTS = {
    "everything in Redis": "redis",
    "+ igbinary": "igbinary",
    "+ APCu in front": "apcu",
    "+ APCu, igbinary": "apcu-igbinary",
    "+ igbinary, session caches in the session": "session",
    "all of it": "core",
    "its own store": "copied",
    "the recipe: and the release's strings": "",
}


@dataclass
class Side:
    """One side of the comparison: where requests go and whose CPU they cost."""

    name: str
    target: Target
    # Tier → its containers; the balancer (TLS) is shown but not counted as the page's.
    tiers: dict[str, list[str]]
    database: str
    redis: bool = True
    visitors: list[Visitor] = field(default_factory=list)

    def visit(self, number: int) -> Visitor:
        """The visitor of a client thread."""
        return self.visitors[number]


def page_paths(fleet: Fleet) -> dict[str, str]:
    """Path of each page."""
    course = fleet.tenants[0]["site"]["course"]
    return {"login": "/login/index.php", "front": "/?redirect=0", "dashboard": "/my/", "course": f"/course/view.php?id={course}"}


def log_in(side: Side, fleet: Fleet, clients: int) -> None:
    """One session for each client."""
    tenant = fleet.tenants[0]
    for number in range(len(side.visitors), clients):
        visitor = Visitor(side.target)
        visitor.log_in(f"learner{number + 1}", tenant["learner_password"])
        side.visitors.append(visitor)


def cell(side: Side, page: str, path: str, requests: int, clients: int) -> list[float]:
    """Get a page so many times; returns the seconds each took."""
    def work(number: int) -> list[float]:
        visitor, taken = side.visit(number), []
        # The connection idled while the other sides were measured, and may be closed.
        visitor.close()
        for _each in range(requests // clients):
            # A login page is asked for by somebody who has no session yet.
            status, body, seconds = visitor.get(path, cookies=page != "login")
            if status != 200 or (page != "login" and b'name="logintoken"' in body):
                raise SystemExit(f"{side.name}: {path} answered {status}: {body[:200]!r}")
            taken.append(seconds)
        return taken

    if clients == 1:
        return work(0)
    with ThreadPoolExecutor(clients) as pool:
        return [seconds for part in pool.map(work, range(clients)) for seconds in part]


# Seconds of CPU for each side and page, one value a round.
Costs = dict[tuple[str, str], list[float]]


def measure(fleet: Fleet, sides: list[Side], requests: int, rounds: int, clients: int) -> tuple[list[dict], Costs]:
    """All pages of all sides, interleaved; one row a side and page, medians over the rounds, and the rounds' CPU."""
    paths = page_paths(fleet)
    cpus = {side.name: Cpu(name for names in side.tiers.values() for name in names) for side in sides}
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for side in sides:
        log_in(side, fleet, clients)
        for page, path in paths.items():
            cell(side, page, path, max(6, 2 * clients), clients)
    for number in range(rounds):
        say(f"  round {number + 1} of {rounds}, {clients} client(s) …")
        for page, path in paths.items():
            for side in sides if number % 2 == 0 else reversed(sides):
                values = found[side.name, page]
                commands, queries = (fleet.redis_commands() if side.redis else 0), fleet.queries(side.database)
                before, start = cpus[side.name].read(), time.perf_counter()
                taken = cell(side, page, path, requests, clients)
                wall, used = time.perf_counter() - start, cpus[side.name].since(before)
                values["queries"].append((fleet.queries(side.database) - queries - 1) / len(taken))
                if side.redis:
                    values["redis"].append((fleet.redis_commands() - commands) / len(taken))
                parts = {tier: sum(used[name] for name in names) / len(taken) for tier, names in side.tiers.items()}
                for tier, seconds in parts.items():
                    values["cpu " + tier].append(seconds)
                values["cpu"].append(sum(seconds for tier, seconds in parts.items() if tier != "balancer"))
                values["p50"].append(percentile(taken, 0.5))
                values["p95"].append(percentile(taken, 0.95))
                values["rate"].append(len(taken) / wall)
    rows = []
    for side in sides:
        for page in PAGES:
            values = found[side.name, page]
            row = {"side": side.name, "page": page, "clients": clients, "CPU ms": 1000 * median(values["cpu"])}
            for tier in ("web", "database", "cache", "balancer"):
                row[f"{tier} ms"] = 1000 * median(values["cpu " + tier])
            row |= {"Redis commands": median(values["redis"]), "SQL": median(values["queries"])}
            row |= {"p50 ms": 1000 * median(values["p50"]), "p95 ms": 1000 * median(values["p95"]), "pages/s": median(values["rate"])}
            rows.append(row)
    return rows, {key: values["cpu"] for key, values in found.items()}


def ratios(costs: Costs, base: str) -> list[dict]:
    """CPU of each side against the base: each page, their geometric mean, and all pages together.

    Both sides of a ratio come from the same round, minutes apart at most, and the median of the rounds counts: so neither the
    drift of the machine's speed nor a round that others disturbed shows.
    """
    result = []
    for side in dict.fromkeys(side for side, _page in costs):
        each = {page: median([a / b for a, b in zip(costs[side, page], costs[base, page], strict=True)]) for page in PAGES}
        mean = math.exp(sum(math.log(value) for value in each.values()) / len(each))
        sums = [[sum(values) for values in zip(*(costs[one, page] for page in PAGES), strict=True)] for one in (side, base)]
        total = median([a / b for a, b in zip(*sums, strict=True)])
        result.append({"side": side, **each, "geometric mean": mean, "all pages together": total})
    return result


def stand_alone(fleet: Fleet) -> Container:
    """The stand-alone server with a copy of the first tenant's site."""
    alone = Container(fleet, "alone", 2, "localhost/moodle-fleet/base:bookworm")
    fresh = alone.start()
    tenant = fleet.tenants[0]
    if fresh or not alone.sh("test -e /srv/moodledata/alone/.copied && echo yes", check=False).strip():
        say(f"Setting up the stand-alone server {alone.name} …")
        workers = (health(fleet.of("web")[0]["address"]) or {}).get("workers", 4)
        fleet.playbook(HERE / "standalone.yml", bench_container=alone.name, bench_workers=workers, bench_host=ALONE)
    say("Copying the site to the stand-alone server …")
    alone.sh("mariadb -e \"DROP DATABASE IF EXISTS alone; CREATE DATABASE alone DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci;"
             " CREATE USER IF NOT EXISTS 'www-data'@localhost IDENTIFIED VIA unix_socket; GRANT ALL ON alone.* TO 'www-data'@localhost\"")
    pipe(["podman", "exec", fleet.names("database")[0], "mariadb-dump", "--single-transaction", tenant["database"]],
         ["podman", "exec", "-i", alone.name, "mariadb", "alone"])
    alone.sh("find /srv/moodledata/alone/data -mindepth 1 -delete")
    pipe(["podman", "exec", fleet.names("web")[0], "tar", "-C", f"/srv/moodledata/{tenant['name']}/data", "-c", "."],
         ["podman", "exec", "-i", alone.name, "tar", "-C", "/srv/moodledata/alone/data", "-x"])
    alone.sh("systemctl restart php-fpm.service && touch /srv/moodledata/alone/.copied && sleep 1")
    return alone


def bench_nodes(fleet: Fleet, count: int) -> list[WebNode]:
    """Web nodes beside the balancer on which a request's header chooses the variant."""
    nodes = [WebNode(fleet, number + 1) for number in range(count)]
    for node in nodes:
        node.start()
        node.configure()
        marker = "// From Moodle 5.1 the web root"
        text = node.sh("cat /etc/moodle-fleet/config.php")
        if marker not in text:
            raise SystemExit("config.php of the role tenants has no line before which a variant could be set")
        if "bench.php" not in text:
            text = text.replace(marker, "require '/usr/lib/moodle-fleet/bench.php';\n" + marker)
        node.sh("cat > /etc/moodle-fleet/config.php", text)
        for source, target in (("variants.php", "bench.php"), ("variants_cache.php", "bench-cache.php"), ("freshness.php", "freshness.php")):
            node.sh(f"cat > /usr/lib/moodle-fleet/{target}; chmod 644 /usr/lib/moodle-fleet/{target}", (HERE / source).read_text(encoding="utf-8"))
        # Compiled copies in the file cache would be used on, whatever the files say now.
        node.sh("rm -rf /var/cache/moodle-fleet/opcache/*/usr")
        node.restart_php()
    return nodes


def forwarded(fleet: Fleet) -> dict[str, str]:
    """What the balancer adds to a request."""
    return {"X-Forwarded-For": str(next(fleet.network.hosts())), "X-Forwarded-Proto": "https"}


def versus(fleet: Fleet, given: argparse.Namespace) -> None:
    """The fleet against the stand-alone server."""
    web, tenant = fleet.of("web")[0], fleet.tenants[0]
    tiers = {"web": [web["name"]], "database": fleet.names("database"), "cache": fleet.names("cache")}
    database = fleet.names("database")[0]
    public = f"{tenant['host']}:{fleet.port}"
    sides = []
    if fleet.standin:
        say("The stand-in site keeps its sessions in Redis only, so it has no stand-alone server to compare with.")
    else:
        alone = stand_alone(fleet)
        sides.append(Side("stand-alone", Target("stand-alone", alone.address, ALONE, headers=forwarded(fleet)),
                          {"one server": [alone.name]}, alone.name, redis=False))
    sides.append(Side("fleet node", Target("fleet node", web["address"], tenant["host"], headers={**forwarded(fleet), "Host": public}),
                      tiers, database))
    balancers = fleet.of("balancer")
    if balancers:
        through = Target("through the balancer", balancers[0]["address"], tenant["host"], 443, str(fleet.state / "tls/ca.pem"), {"Host": public})
        everything = {**tiers, "web": fleet.names("web"), "balancer": fleet.names("balancer")}
        sides.append(Side("through the balancer", through, everything, database))
    rows, costs = measure(fleet, sides, given.requests, given.rounds, 1)
    saturated, crowded = [], {}
    if given.clients > 1:
        saturated, crowded = measure(fleet, sides[:2], given.requests, given.rounds, given.clients)
    report("pages", f"CPU of a page, {fleet.what}", rows + saturated, [
        "CPU ms: web, database and cache together, a page; the balancer's (TLS) is shown beside it. Medians of the rounds.",
    ])
    if not fleet.standin:
        direct = {key: values for key, values in costs.items() if key[0] != "through the balancer"}
        table = [{"clients": 1, **row} for row in ratios(direct, "stand-alone")]
        if saturated:
            table += [{"clients": given.clients, **row} for row in ratios(crowded, "stand-alone")]
        report("pages-ratio", "CPU of a page against the stand-alone server (1.00 = the same)", table)


def measures(fleet: Fleet, given: argparse.Namespace) -> None:
    """What each measure gains over keeping everything in Redis."""
    node, tenant = bench_nodes(fleet, 1)[0], fleet.tenants[0]
    tiers = {"web": [node.name], "database": fleet.names("database"), "cache": fleet.names("cache")}
    database = fleet.names("database")[0]
    public = f"{tenant['host']}:{fleet.port}"
    sides = [
        Side(name, Target(name, node.address, tenant["host"], headers={**forwarded(fleet), "Host": public, "X-Bench-Variant": variant}),
             tiers, database)
        for name, variant in VARIANTS.items()
    ]
    alone = stand_alone(fleet)
    sides.append(Side("stand-alone", Target("stand-alone", alone.address, ALONE, headers=forwarded(fleet)),
                      {"one server": [alone.name]}, alone.name, redis=False))
    rows, costs = measure(fleet, sides, given.requests, given.rounds, 1)
    table = []
    commands = {(row["side"], row["page"]): row["Redis commands"] for row in rows}
    for row in ratios(costs, "stand-alone"):
        counts = [commands[row["side"], page] for page in PAGES]
        row["Redis commands"] = "-" if row["side"] == "stand-alone" else "/".join(f"{count:.0f}" for count in counts)
        table.append(row)
    report("measures", "Each measure's gain: CPU of a page against the stand-alone server", table)


def freshness(fleet: Fleet, given: argparse.Namespace) -> None:
    """Changes made through one node, read through another at the next request."""
    nodes, host = bench_nodes(fleet, 2), fleet.tenants[0]["host"]
    agents = [node.agent() for node in nodes]
    script, rows = "/usr/lib/moodle-fleet/freshness.php", []
    for name, variant in (("the recipe", ""), ("control: everything in APCu", "control")):
        headers = {"x_bench_variant": variant} if variant else {}
        stale: dict[str, int] = defaultdict(int)
        for number in range(given.changes):
            writer, reader = agents[number % 2], agents[1 - number % 2]
            value = f"{secrets.token_hex(6)}{number % 2}"
            reader.call(script, host, {"do": "read"}, **headers)
            wrote = writer.call(script, host, {"do": "write", "value": value}, **headers)
            read = reader.call(script, host, {"do": "read"}, **headers)
            for what, seen in read.items():
                expected = str(number % 2) if what == "permission" else value
                stale[what] += seen != expected
                if wrote[what] != expected:
                    raise SystemExit(f"{what}: the writer itself read {wrote[what]!r}, not {expected!r}")
        rows += [{"configuration": name, "what": what, "changes": given.changes, "stale reads": count} for what, count in stale.items()]
    for agent in agents:
        agent.close()
    report("freshness", "A change made through one node, read through the other at the next request", rows)


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `pages`."""
    with fleet.quiet():
        if "versus" in given.parts:
            versus(fleet, given)
        if not fleet.standin and "measures" in given.parts:
            measures(fleet, given)
        if not fleet.standin and "freshness" in given.parts:
            freshness(fleet, given)


def clean(fleet: Fleet) -> None:
    """Take the benchmark's containers away."""
    for name in run("podman", "ps", "--all", "--filter", "label=moodle_fleet.bench=1", "--filter", f"name=^{fleet.name}-bench-",
                    "--format", "{{.Names}}").split():
        run("podman", "rm", "--force", "--time", "2", "--volumes", name, check=False)
