# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Launch → first request served through the balancer: by the collection, from the image and from bare, and by hand.

By hand are the fewest commands that do the same: podman run, copy the configuration, poll the health check, get a page,
add the server to HAProxy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checks import Trigger, members, newest, served, settle

from measure import median, report, run, say
from nodes import CONFIGURATION, HERE, ROOT, Container, Fleet, pipe
from site_client import Target, Visitor, health

LIMIT = 900
COUNTS = (1, 8)


def visit_until(fleet: Fleet, names: Callable[[], Iterable[str]], count: int, failed: Callable[[], str] = lambda: "") -> float:
    """Visit the site through the balancer until so many of these members have served a request; returns the moment."""
    tenant = fleet.tenants[0]
    target = Target("balancer", fleet.of("balancer")[0]["address"], tenant["host"], 443, str(fleet.state / "tls/ca.pem"),
                    {"Host": f"{tenant['host']}:{fleet.port}"})
    deadline, visitor = time.monotonic() + LIMIT, Visitor(target)
    while time.monotonic() < deadline:
        requests = [served(fleet, name) for name in names()]
        if sum(number > 0 for number in requests) >= count:
            return time.time()
        # A page only once there is a member without one, so that the waiting costs the machine little.
        if 0 in requests:
            visitor.get("/login/index.php", cookies=False)
        if failed():
            raise SystemExit(f"the launch failed:\n{failed()}")
        time.sleep(0.05)
    raise SystemExit(f"{count} new nodes served nothing within {LIMIT} s")


def socket_command(fleet: Fleet, *lines: str) -> None:
    """Commands to HAProxy's runtime socket."""
    script = ("import socket,sys\nfor line in sys.stdin:\n s=socket.socket(socket.AF_UNIX); s.settimeout(5)\n"
              " s.connect('/run/haproxy/admin.sock'); s.sendall(line.encode()); s.shutdown(1); print(s.recv(9999).decode().strip())")
    run("podman", "exec", "-i", fleet.names("balancer")[0], "python3", "-c", script, stdin="\n".join(lines) + "\n")


def by_collection(fleet: Fleet, trigger: Trigger, count: int) -> float:
    """Seconds from the decision to the first request at the last of the new nodes, by the trigger and scale.yml."""
    settle(trigger, 2)
    before, found = set(members(fleet)), {}
    thread = threading.Thread(target=lambda: found.update(trigger.check("--desired", str(2 + count))))
    thread.start()
    try:
        end = visit_until(fleet, lambda: set(members(fleet)) - before, count, lambda: str(found.get("message") or ""))
    finally:
        thread.join()
    return end - found["sample"]["taken"]


def from_bare(fleet: Fleet) -> float:
    """Seconds from a bare server, with every role."""
    name = f"{fleet.name}-web-bare-1"
    variables = {"bench_token": "bare", "bench_image": "", "bench_release": "", "bench_node": name}
    start, process = time.time(), None
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(variables | {"bench_state": "present"}, file)
            file.flush()
            process = subprocess.Popen(
                ["ansible-playbook", "-i", str(fleet.file.parent), str(HERE / "launch.yml"), "-e", f"@{file.name}"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            )
            output, _none = process.communicate(timeout=LIMIT)
        if process.returncode:
            raise SystemExit(f"launch.yml failed:\n{output[-4000:]}")
        return visit_until(fleet, lambda: [name], 1) - start
    finally:
        fleet.playbook(HERE / "launch.yml", **variables, bench_state="absent")


def by_hand(fleet: Fleet, model: str, image: str, count: int) -> dict[str, float]:
    """Seconds of the bare commands, side by side for several nodes; each part ends when the last node has done it."""
    nodes = [Container(fleet, f"launch-{index}", 8 + index, image, shared=True) for index in range(count)]
    tenant = fleet.tenants[0]
    headers = {"Host": f"{tenant['host']}:{fleet.port}", "X-Forwarded-For": "192.0.2.1"}

    def start(node: Container) -> tuple[float, float, float]:
        node.start()
        started = time.time()
        pipe(["podman", "exec", model, "tar", "-C", "/", "-c", *CONFIGURATION], ["podman", "exec", "-i", node.name, "tar", "-C", "/", "-x"])
        while not health(node.address):
            time.sleep(0.02)
        healthy = time.time()
        Visitor(Target("node", node.address, tenant["host"], headers=headers)).get("/login/index.php")
        return started, healthy, time.time()

    moments = [time.time()]
    try:
        with ThreadPoolExecutor(count) as pool:
            moments += [max(column) for column in zip(*pool.map(start, nodes), strict=True)]
        socket_command(fleet, *(line for node in nodes for line in (
            f"add server web/{node.name} {node.address}:80 check inter 1s weight 100",
            f"enable health web/{node.name}", f"set server web/{node.name} state ready")))
        moments.append(visit_until(fleet, lambda: [node.name for node in nodes], count))
    finally:
        socket_command(fleet, *(f"set server web/{node.name} state maint" for node in nodes))
        time.sleep(0.5)
        socket_command(fleet, *(f"del server web/{node.name}" for node in nodes))
        for node in nodes:
            node.remove()
    parts = [after - before for before, after in zip(moments, moments[1:], strict=False)]
    return {"run": parts[0], "configuration, health": parts[1], "first page": parts[2], "added and served": parts[3], "total": sum(parts)}


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `launch`."""
    image = run("podman", "inspect", "--format", "{{.Image}}", fleet.of("web")[0]["name"]).strip()
    rows, notes = [], []
    with tempfile.TemporaryDirectory(prefix="moodle-fleet-") as folder, fleet.quiet():
        trigger = Trigger(fleet, Path(folder), max_nodes=2 + max(COUNTS))
        for count in COUNTS:
            hand, collection = [], []
            rounds = min(given.rounds, 3 if count > 1 else 5)
            for number in range(rounds):
                say(f"  {count} node(s), round {number + 1} of {rounds} …")
                # The node whose configuration is copied: those of the beginning may be gone by now.
                hand.append(by_hand(fleet, newest(trigger.web()), image, count))
                collection.append(by_collection(fleet, trigger, count))
                settle(trigger, 2)
            floor = median([each["total"] for each in hand])
            for side, seconds in (("bare commands", floor), ("decision → request, by scale.yml", median(collection))):
                rows.append({"launch": f"{side}, from the image", "nodes": count, "seconds": seconds,
                             "beyond the bare commands": seconds - floor, "runs": rounds})
            parts = ", ".join(f"{part} {median([each[part] for each in hand]):.2f}" for part in hand[0])
            notes.append(f"Bare commands for {count} node(s) in seconds: {parts}.")
        say("  from a bare server …")
        floor = rows[0]["seconds"]
        try:
            bare = from_bare(fleet)
        except SystemExit as exc:
            # What was measured before is told all the same.
            notes.append(f"From a bare server: {exc}")
        else:
            rows.append({"launch": "playbook with every role, from a bare server", "nodes": 1, "seconds": bare,
                         "beyond the bare commands": bare - floor, "runs": 1})
    report("launch", f"Launch to the first request served through the balancer, {fleet.what}", rows, notes)
