# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Launch → first request served through the balancer: by the collection, from the image and from bare, and by hand.

By hand are the fewest commands that do the same: podman run, copy the configuration, poll the health check, get a page,
add the server to HAProxy.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import subprocess
import tempfile
import time

from measure import median, report, run, say
from nodes import CONFIGURATION, Fleet, HERE, ROOT, Container, pipe
from site_client import Target, Visitor, health

LIMIT = 900


def served(fleet: Fleet, name: str) -> int:
    """Requests that the balancer gave to a member."""
    connection = http.client.HTTPConnection(fleet.of("balancer")[0]["address"], 8404, timeout=5)
    connection.request("GET", "/stats;csv")
    text = connection.getresponse().read().decode()
    connection.close()
    for row in csv.DictReader(text.lstrip("# ").splitlines()):
        if row["svname"] == name:
            return int(row["stot"] or 0)
    return 0


def until_served(fleet: Fleet, name: str, process: subprocess.Popen | None = None) -> float:
    """Visit the site through the balancer until the node has served a request; returns the moment."""
    tenant = fleet.tenants[0]
    target = Target("balancer", fleet.of("balancer")[0]["address"], tenant["host"], 443, str(fleet.state / "tls/ca.pem"),
                    {"Host": f"{tenant['host']}:{fleet.port}"})
    deadline = time.monotonic() + LIMIT
    visitor = Visitor(target)
    while time.monotonic() < deadline:
        # A page only once there is a member, so that the waiting costs the machine little.
        if known(fleet, name):
            visitor.get("/login/index.php", cookies=False)
            if served(fleet, name):
                return time.monotonic()
        if process and process.poll():
            raise SystemExit(f"the playbook failed:\n{process.stdout.read()[-4000:]}")
        time.sleep(0.05)
    raise SystemExit(f"{name} served nothing within {LIMIT} s")


def known(fleet: Fleet, name: str) -> bool:
    """Whether the balancer has this member."""
    connection = http.client.HTTPConnection(fleet.of("balancer")[0]["address"], 8404, timeout=5)
    connection.request("GET", "/stats;csv")
    text = connection.getresponse().read().decode()
    connection.close()
    return f",{name}," in text


def socket_command(fleet: Fleet, *lines: str) -> None:
    """Commands to HAProxy's runtime socket."""
    script = ("import socket,sys\nfor line in sys.stdin:\n s=socket.socket(socket.AF_UNIX); s.settimeout(5)\n"
              " s.connect('/run/haproxy/admin.sock'); s.sendall(line.encode()); s.shutdown(1); print(s.recv(9999).decode().strip())")
    run("podman", "exec", "-i", fleet.names("balancer")[0], "python3", "-c", script, stdin="\n".join(lines) + "\n")


def by_collection(fleet: Fleet, image: str, release: str, token: str) -> float:
    """Seconds with the collection's modules and roles."""
    name = f"{fleet.name}-web-{token}-1"
    variables = {"bench_token": token, "bench_image": image, "bench_release": release, "bench_node": name}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(variables | {"bench_state": "present"}, file)
        file.flush()
        start = time.monotonic()
        process = subprocess.Popen(
            ["ansible-playbook", "-i", str(fleet.file.parent), str(HERE / "launch.yml"), "-e", f"@{file.name}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )
        try:
            return until_served(fleet, name, process) - start
        finally:
            process.communicate(timeout=LIMIT)
            fleet.playbook(HERE / "launch.yml", **variables, bench_state="absent")


def by_hand(fleet: Fleet, image: str) -> dict[str, float]:
    """Seconds of each bare command."""
    node, model, moments = Container(fleet, "launch", 8, image, shared=True), fleet.of("web")[0]["name"], [time.monotonic()]
    try:
        node.start()
        moments.append(time.monotonic())
        pipe(["podman", "exec", model, "tar", "-C", "/", "-c", *CONFIGURATION], ["podman", "exec", "-i", node.name, "tar", "-C", "/", "-x"])
        while not health(node.address):
            time.sleep(0.02)
        moments.append(time.monotonic())
        tenant = fleet.tenants[0]
        visitor = Visitor(Target("node", node.address, tenant["host"], headers={"Host": f"{tenant['host']}:{fleet.port}", "X-Forwarded-For": "192.0.2.1"}))
        visitor.get("/login/index.php")
        moments.append(time.monotonic())
        socket_command(fleet, f"add server web/{node.name} {node.address}:80 check inter 1s weight 100",
                       f"enable health web/{node.name}", f"set server web/{node.name} state ready")
        moments.append(until_served(fleet, node.name))
    finally:
        socket_command(fleet, f"set server web/{node.name} state maint")
        time.sleep(0.5)
        socket_command(fleet, f"del server web/{node.name}")
        node.remove()
    parts = [after - before for before, after in zip(moments, moments[1:], strict=False)]
    return {"run": parts[0], "configuration, health": parts[1], "first page": parts[2], "added and served": parts[3], "total": sum(parts)}


def main(fleet: Fleet, given: argparse.Namespace) -> None:
    """The benchmark `launch`."""
    web = fleet.of("web")[0]
    image, release = run("podman", "inspect", "--format", "{{.Image}}", web["name"]).strip(), web["release"]
    rounds = min(given.rounds, 5)
    hand, collection = [], []
    with fleet.quiet():
        for number in range(rounds):
            say(f"  round {number + 1} of {rounds} …")
            hand.append(by_hand(fleet, image))
            collection.append(by_collection(fleet, image, release, f"bench{number}"))
        say("  from a bare server …")
        bare = by_collection(fleet, "", release, "bare")
    floor = median([each["total"] for each in hand])
    rows = [
        {"launch": "bare commands, from the image", "seconds": floor, "beyond the bare commands": 0.0, "runs": rounds},
        {"launch": "the collection, from the image", "seconds": median(collection), "beyond the bare commands": median(collection) - floor, "runs": rounds},
        {"launch": "the collection, from a bare server", "seconds": bare, "beyond the bare commands": bare - floor, "runs": 1},
    ]
    parts = ", ".join(f"{part} {median([each[part] for each in hand]):.2f}" for part in hand[0])
    report("launch", f"Launch to the first request served through the balancer, {fleet.what}", rows, [f"Bare commands in seconds: {parts}."])
