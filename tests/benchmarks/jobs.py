# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The cron of many tenants: the dispatcher against a plain cron line for each, a busy neighbour, and nodes that die or freeze.

With real Moodle it first compares, over minutes, what a copy of a site did under each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from pathlib import Path

from tenants import entries

from measure import Cpu, median, percentile, report, run, say, wait_for
from nodes import HERE, Fleet

UNIT = "moodle-fleet-cron"
MINUTE = 60
# Ad-hoc tasks that are under way when a node is lost.
TASKS = 24
PLAIN = "php -d max_input_vars=5000 {code}/admin/cli/cron.php --keep-alive=0"
# What two copies that do the same have in common.
LIKE = {
    "ran": "SELECT classname, result, COUNT(*) FROM {database}.mdl_task_log WHERE timestart >= {since} GROUP BY 1, 2 ORDER BY 1, 2",
    "planned": "SELECT classname, nextruntime, faildelay, disabled, timestarted FROM {database}.mdl_task_scheduled ORDER BY 1",
    "queued": "SELECT classname, faildelay, COUNT(*) FROM {database}.mdl_task_adhoc GROUP BY 1, 2 ORDER BY 1, 2",
    "cron's own settings": "SELECT name, IF(name LIKE 'lastcron%', '', value) FROM {database}.mdl_config_plugins"
                           " WHERE plugin = 'tool_task' ORDER BY 1",
}


def own_second(tenant: str) -> float:
    """The second of the minute in which the dispatcher runs a tenant's cron."""
    return zlib.crc32(tenant.encode()) % 1000 / 1000 * MINUTE


class Jobs:
    """The fleet's jobs nodes, and what its databases say of the tenants' cron."""

    def __init__(self, fleet: Fleet, count: int) -> None:
        self.fleet = fleet
        self.nodes = fleet.names("jobs")
        if len(self.nodes) < 2:
            raise SystemExit("The benchmark 'jobs' needs two jobs nodes: services: {jobs: {count: 2}} in the fleet file, then scripts/demo")
        self.database = fleet.names("database")[0]
        self.added = entries("c", max(0, count - len(fleet.tenants)), settings={"site_is_public": "0"})
        self.names = [one["name"] for one in fleet.tenants] + [one["name"] for one in self.added]
        self.cpu = Cpu(fleet.names("jobs", "database", "cache"))

    def sh(self, node: str, script: str, check: bool = True) -> str:
        """Run a shell script on a node."""
        return run("podman", "exec", node, "sh", "-ec", script, check=check)

    def sql(self, statement: str) -> list[list[str]]:
        """Ask the database as root."""
        text = run("podman", "exec", "-i", self.database, "mariadb", "-N", stdin=statement)
        return [line.split("\t") for line in text.splitlines()]

    def apply(self, tenants: list[dict], **variables: object) -> None:
        """Bring the benchmark's tenants into being, or remove them."""
        with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder:
            result = Path(folder) / "result.json"
            self.fleet.playbook(HERE / "tenants.yml", bench_result=str(result), bench_tenants=tenants, **variables)
        # All jobs nodes have to know them.
        files = "etc/moodle-fleet/tenants.php"
        for node in self.nodes[1:]:
            text = self.sh(self.nodes[0], f"cat /{files}")
            run("podman", "exec", "-i", node, "sh", "-c", f"cat > /{files}", stdin=text)

    def service(self, action: str, nodes: list[str] | None = None) -> None:
        """systemctl, on all jobs nodes by default."""
        for node in nodes or self.nodes:
            self.sh(node, f"systemctl {action} {UNIT}")

    def status(self, node: str) -> dict:
        """What the dispatcher of a node says; nothing if it does not run."""
        return json.loads(self.sh(node, "cat /run/moodle-fleet-cron/status.json 2>/dev/null || echo '{}'", check=False) or "{}")

    def active(self) -> str:
        """The node that holds the lease now, or nothing."""
        rows = self.sql("SELECT holder FROM moodle_fleet.jobs_lease WHERE until > UTC_TIMESTAMP(3)")
        return rows[0][0] if rows else ""

    def started(self) -> dict[str, int]:
        """When each tenant's cron last started, as Moodle wrote it down."""
        parts = [
            f"SELECT '{name}', value FROM moodle_{name}.mdl_config_plugins WHERE plugin = 'tool_task' AND name = 'lastcronstart'"
            for name in self.names
        ]
        return {name: int(value) for name, value in self.sql(" UNION ALL ".join(parts))}

    def settle(self, seconds: float = 600) -> None:
        """Wait until every tenant's cron has run since now, and a minute more, in which each finds its own second."""
        since = time.time()
        wait_for("every tenant's cron", lambda: min(self.started().values(), default=0) >= since, seconds, 2)
        time.sleep(MINUTE)

    def watch(self, seconds: float) -> dict[str, list[int]]:
        """The starts of each tenant's cron, for so long."""
        seen: dict[str, list[int]] = {name: [] for name in self.names}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, moment in self.started().items():
                if not seen[name] or seen[name][-1] != moment:
                    seen[name].append(moment)
            time.sleep(5)
        return seen

    def enqueue(self, tenant: str, count: int, seconds: float, busy: bool) -> None:
        """Queue ad-hoc tasks that take so long."""
        data = json.dumps({"seconds": seconds, "busy": busy})
        values = ", ".join(f"('moodle', '\\\\core\\\\task\\\\bench_task', UNIX_TIMESTAMP() - 1, 0, '{data}', UNIX_TIMESTAMP(), 12)"
                           for _number in range(count))
        self.sql(f"INSERT INTO moodle_{tenant}.mdl_task_adhoc"
                 f" (component, classname, nextruntime, faildelay, customdata, timecreated, attemptsavailable) VALUES {values}")

    def notes(self, tenant: str) -> list[list[str]]:
        """What those tasks noted: id, began or ended, node, when."""
        # The file is shared; a node that is dead or frozen can't be asked.
        texts = (self.sh(node, f"cat /srv/moodledata/{tenant}/data/bench-tasks", check=False) for node in self.nodes)
        return [line.split() for line in next((text for text in texts if text), "").splitlines()]

    def prepend(self, wanted: bool) -> None:
        """Let the dispatcher's forks know the benchmark's task, or no longer."""
        file = "/usr/lib/moodle-fleet/bench-task.php"
        source = (HERE / "jobs_task.php").read_text(encoding="utf-8")
        for node in self.nodes:
            run("podman", "exec", "-i", node, "sh", "-c", f"cat > {file} && chmod 644 {file}" if wanted else f"rm -f {file}", stdin=source)
            self.sh(node, "python3 - <<'EOF'\nimport json\npath = '/etc/moodle-fleet/cron.json'\nsettings = json.load(open(path))\n"
                    f"more = ['-d', 'auto_prepend_file={file}']\nphp = [word for word in settings['php'] if word not in more[1:]]\n"
                    "php = php[:-1] if php[-1] == '-d' else php\n"
                    f"settings['php'] = php + (more if {wanted} else [])\njson.dump(settings, open(path, 'w'))\nEOF")


def cost(jobs: Jobs, rounds: int) -> None:
    """CPU seconds of a minute: one plain cron line for each tenant, and the dispatcher, in turn."""
    rows = []
    script = (f"printf '%s\\n' {' '.join(jobs.names)} | runuser -u www-data -- xargs -P 2 -I NAME sh -c"
              f" 'MOODLE_TENANT=NAME {PLAIN.format(code='/srv/moodle/current')} > /dev/null 2>&1 || true'")
    for number in range(rounds):
        say(f"  round {number + 1} of {rounds} …")
        jobs.service("stop")
        # So that an ordinary minute's tasks are due, as for the other side.
        time.sleep(MINUTE)
        before, began = jobs.cpu.read(), time.monotonic()
        jobs.sh(jobs.nodes[0], script)
        took = time.monotonic() - began
        time.sleep(max(0.0, MINUTE - took))
        rows.append(row("plain", jobs, before, len(jobs.names), took))
        jobs.service("start")
        jobs.settle()
        node = wait_for("a node dispatches", jobs.active, 60, 1)
        time.sleep(16)
        before, counted = jobs.cpu.read(), jobs.status(node)
        # Its figures are written every 15 s.
        time.sleep(MINUTE)
        spent = jobs.cpu.since(before)

        def figures(node: str = node, since: float = counted["time"]) -> dict | None:
            status = jobs.status(node)
            return status if status["time"] - since >= MINUTE - 1 else None

        ended = wait_for("its figures", figures, 30, 1)
        runs = (ended["totals"]["runs"] - counted["totals"]["runs"]) * MINUTE / (ended["time"] - counted["time"])
        late = [one["late"] for one in ended["tenants"].values() if one.get("started", 0) > counted["time"]]
        rows.append(row("dispatcher", jobs, before, runs, float("nan"), spent, late))
    sides = {side: [one for one in rows if one["side"] == side] for side in ("plain", "dispatcher")}
    table = [
        {"side": side, "rounds": len(found)} | {key: median([one[key] for one in found]) for key in found[0] if key != "side"}
        for side, found in sides.items()
    ]
    ratio = table[1]["CPU s a minute"] / table[0]["CPU s a minute"]
    report("jobs-cost", f"A minute of {len(jobs.names)} tenants' cron, {jobs.fleet.what}", rows + [{"side": "medians"}] + table, [
        f"CPU of the jobs nodes, the database and Redis; the dispatcher's share of plain cron's: {ratio:.2f}.",
    ])


def row(side: str, jobs: Jobs, before: dict, runs: float, took: float, spent: dict | None = None, late: list | None = None) -> dict:
    """A line of the table of costs; as for one run of each tenant."""
    spent = spent or jobs.cpu.since(before)
    parts = {name: sum(value for node, value in spent.items() if node in jobs.fleet.names(name)) for name in ("jobs", "database", "cache")}
    total = sum(parts.values())
    return {"side": side, "runs": runs, "CPU s a minute": total * len(jobs.names) / runs, **parts,
            "wall s": took, "late p50": percentile(late or [], 0.5), "late p99": percentile(late or [], 0.99)}


def likeness(jobs: Jobs, minutes: int) -> None:
    """Two copies of a site, one under plain cron and one under the dispatcher: what ran, and what is planned next."""
    plain = jobs.added[0]["name"]
    # One whose turn is far from the change of a minute.
    ours = next(one["name"] for one in jobs.added[1:] if 25 <= own_second(one["name"]) <= 40)
    say(f"  {plain} by plain cron, {ours} by the dispatcher, {minutes} minutes …")
    jobs.service("stop")
    for table in ("task_scheduled", "task_adhoc"):
        jobs.sql(f"DELETE FROM moodle_{ours}.mdl_{table}; INSERT INTO moodle_{ours}.mdl_{table} SELECT * FROM moodle_{plain}.mdl_{table}")
    file = "/etc/moodle-fleet/tenants.php"
    for node in jobs.nodes:
        jobs.sh(node, f"cp -p {file} {file}.bench; sed -i \"/^ *'{ours}' =>/! s/'state' => 'active'/'state' => 'suspended'/\" {file}")
    command = f"runuser -u www-data -- env MOODLE_TENANT={plain} {PLAIN.format(code='/srv/moodle/current')} > /dev/null || true"
    try:
        # The dispatcher's first run is at once, the others follow in the tenant's own second; plain cron comes in the same seconds.
        time.sleep((own_second(ours) - 12 - time.time()) % MINUTE)
        since = int(time.time())
        jobs.service("start", jobs.nodes[:1])
        wait_for("the first run", lambda: jobs.started()[ours] >= since, 30, 0.2)
        jobs.sh(jobs.nodes[0], command)
        for _number in range(minutes):
            time.sleep((own_second(ours) - time.time()) % MINUTE)
            jobs.sh(jobs.nodes[0], command)
            time.sleep(1)
        time.sleep(5)
        jobs.service("stop")
    finally:
        for node in jobs.nodes:
            jobs.sh(node, f"mv {file}.bench {file}; touch {file}")
    found = {name: {what: [tuple(line) for line in jobs.sql(query.format(database=f"moodle_{name}", since=since))]
                    for what, query in LIKE.items()} for name in (plain, ours)}
    rows = []
    for what in LIKE:
        one, other = found[plain][what], found[ours][what]
        unlike = sorted(set(one) ^ set(other))
        rows.append({"what": what, "plain": len(one), "dispatcher": len(other), "unlike": len(unlike)})
        for line in unlike:
            say(f"    {what}: {'plain' if line in one else 'dispatcher'} alone: {' '.join(line)}")
    started = jobs.started()
    report("jobs-likeness", f"{minutes} minutes of two copies of a site, {jobs.fleet.what}", rows, [
        f"The last runs started {abs(started[ours] - started[plain])} s apart. Tasks ran: {sum(int(one[2]) for one in found[ours]['ran'])}.",
    ])
    if any(one["unlike"] for one in rows):
        raise SystemExit("The two copies are not alike, see above")


def gaps(seen: dict[str, list[int]]) -> list[int]:
    """Seconds between two runs of a tenant."""
    return [later - earlier for moments in seen.values() for earlier, later in zip(moments, moments[1:])]


def neighbour(jobs: Jobs, seconds: int) -> None:
    """Three tenants with a task that keeps a CPU busy; what the others notice."""
    rows = []
    jobs.prepend(True)
    jobs.service("restart")
    try:
        jobs.settle()
        busy = jobs.names[:3]
        for what in ("quiet", "three neighbours busy"):
            say(f"  {what}, {seconds} s …")
            if what != "quiet":
                for name in busy:
                    jobs.sh(jobs.nodes[0], f"rm -f /srv/moodledata/{name}/data/bench-tasks")
                    jobs.enqueue(name, 1, seconds, True)
            seen = jobs.watch(seconds + MINUTE)
            others = gaps({name: moments for name, moments in seen.items() if name not in busy})
            own = gaps({name: moments for name, moments in seen.items() if name in busy})
            late = jobs.status(jobs.active())["lateness"]
            rows.append({"": what, "others' runs": len(others), "s between, median": median(others), "p99": percentile(others, 0.99),
                         "max": max(others), "theirs, max": max(own), "lateness p50": late["p50"], "lateness p99": late["p99"],
                         "lateness max": late["max"]})
    finally:
        jobs.prepend(False)
        jobs.service("restart")
    report("jobs-neighbour", f"{len(jobs.names)} tenants, two workers, tasks of {seconds} s", rows, [
        "Seconds between two starts of a tenant's cron, from Moodle's own lastcronstart, read every 5 s; lateness of the last 15 minutes, "
        "from the dispatcher.",
    ])


def takeover(jobs: Jobs) -> None:
    """The active node dies, freezes, or is stopped: when the others' cron goes on, and whether a task ran twice."""
    rows = []
    jobs.prepend(True)
    jobs.service("restart")
    tenant = jobs.names[0]
    try:
        jobs.settle()
        for how in ("stopped", "killed", "frozen"):
            say(f"  {how} …")
            node = wait_for("a node dispatches", jobs.active, 60, 1)
            jobs.sh(jobs.nodes[0], f"rm -f /srv/moodledata/{tenant}/data/bench-tasks")
            jobs.enqueue(tenant, TASKS, 2.5, False)
            wait_for("the tasks have begun", lambda node=node: len([one for one in jobs.notes(tenant) if one[2] == node]) > 2, 120, 0.5)
            moment = time.time()
            if how == "stopped":
                run("podman", "exec", node, "systemctl", "stop", "--no-block", UNIT)
            else:
                run("podman", "kill" if how == "killed" else "pause", node)
            first = wait_for("another node goes on", lambda node=node: jobs.active() not in ("", node), 120, 0.2) and time.time() - moment
            wait_for("every tenant", lambda moment=moment: min(value for name, value in jobs.started().items() if name != tenant) >= moment, 300, 1)
            all_ran = time.time() - moment
            if how == "frozen":
                run("podman", "unpause", node)
            if how == "killed":
                run("podman", "start", node)
            wait_for("the tasks are done", lambda: not jobs.sql(
                f"SELECT id FROM moodle_{tenant}.mdl_task_adhoc WHERE classname LIKE '%bench_task' AND timestarted IS NULL"), 600, 2)
            time.sleep(10)
            notes = jobs.notes(tenant)
            ended = [one[0] for one in notes if one[1] == "ended"]
            cut = {one[0] for one in notes if one[1] == "began"} - set(ended)
            rows.append({"node": how, "lease taken after s": first, "all tenants ran after s": all_ran, "tasks ended": len(ended),
                         "ended twice": len(ended) - len(set(ended)), "cut off": len(cut),
                         "began twice": len([1 for one in notes if one[1] == "began"]) - len({one[0] for one in notes if one[1] == "began"})})
            jobs.sql(f"DELETE FROM moodle_{tenant}.mdl_task_adhoc WHERE classname LIKE '%bench_task'")
            if how == "stopped":
                jobs.service("start", [node])
    finally:
        for node in jobs.nodes:
            run("podman", "unpause", node, check=False)
        jobs.prepend(False)
        jobs.service("restart")
    report("jobs-takeover", f"{len(jobs.names)} tenants, {TASKS} ad-hoc tasks of 2.5 s under way", rows, [
        "A task that was cut off with its node is tried again by Moodle itself, after it has noticed (an hour).",
    ])


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `jobs`."""
    jobs = Jobs(fleet, given.tenants)
    try:
        jobs.apply(jobs.added)
        if "cost" in given.parts:
            cost(jobs, given.rounds)
        if "likeness" in given.parts and not fleet.standin:
            likeness(jobs, 6)
        if "neighbour" in given.parts:
            neighbour(jobs, 120)
        if "takeover" in given.parts:
            takeover(jobs)
    finally:
        if not given.keep:
            jobs.apply([one | {"state": "absent"} for one in jobs.added], tenants_remove=[one["name"] for one in jobs.added])
            jobs.apply([])
        jobs.service("start")
