# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Learners who log in, read their course and write, at the given rate, through HTTPS at the balancer.

Exit status 0: no failed request, no lost session, no lost and no doubled post, no log line that is missing at the log
server. 1: at least one of these; 2: could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BAD = ("failed_requests", "lost_sessions", "posts_lost", "posts_doubled", "log_lines_lost")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20, help="learners at the same time (default 20)")
    parser.add_argument("--rate", type=float, default=5, help="requests a second of all learners together (default 5)")
    parser.add_argument("--minutes", type=float, default=1, help="how long (default 1)")
    parser.add_argument("--tenants", type=int, default=0, help="how many of the sites; 0 means all (default)")
    parser.add_argument("--balancer", help="address of the balancer, HOST or HOST:PORT (default: the fleet's own)")
    parser.add_argument("--ca", help="certificate authority to trust (default: the demo's; 'system' for the machine's)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--follow", type=Path, help="a file that says at each moment how many learners there are; 0 ends it")
    parser.add_argument("--fleet-file", default=os.environ.get("MOODLE_FLEET_FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.users < 1 or given.rate <= 0 or given.minutes <= 0:
        parser.error("--users, --rate and --minutes must be above 0")
    return given


def playbook(fleet_file: str, name: str, **variables: object) -> None:
    """Run one of the playbooks here with the fleet's inventory."""
    with tempfile.NamedTemporaryFile("w", prefix="moodle-load-", suffix=".json") as file:
        json.dump(variables, file)
        file.flush()
        command = ["ansible-playbook", "-i", str(Path(fleet_file).absolute().parent), str(HERE / name), "-e", f"@{file.name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        print((done.stdout + done.stderr)[-4000:], file=sys.stderr)
        print(f"{name} failed (above)", file=sys.stderr)
        raise SystemExit(2)


def drive(given: argparse.Namespace, facts: dict, work: Path, run: str) -> dict:
    """Run Locust and return what the learners saw."""
    host, _colon, port = (given.balancer or "").partition(":")
    if not host and not facts["balancers"]:
        print("The fleet has no balancer node: give --balancer", file=sys.stderr)
        raise SystemExit(2)
    authority = given.ca or str(Path(facts["state_dir"]) / "tls/ca.pem")
    seen = work / "seen.json"
    environment = os.environ | {
        "MOODLE_LOAD_FACTS": str(work / "facts.json"),
        "MOODLE_LOAD_SEEN": str(seen),
        "MOODLE_LOAD_RUN": run,
        "MOODLE_LOAD_PACE": str(given.rate / given.users),
        "MOODLE_LOAD_FOLLOW": str(given.follow.absolute()) if given.follow else "",
        "MOODLE_LOAD_BALANCER": host or facts["balancers"][0],
        "MOODLE_LOAD_BALANCER_PORT": port or "443",
        "MOODLE_LOAD_CA": "" if authority == "system" or not Path(authority).exists() else authority,
    }
    command = [
        sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary",
        "--stop-timeout", "120", "--loglevel", "WARNING",
    ]
    if not given.follow:
        command += ["--users", str(given.users), "--spawn-rate", str(max(1.0, min(given.users / 5, given.rate)))]
        command += ["--run-time", f"{max(1, round(given.minutes * 60))}s"]
    # Locust's own exit status says the same as our figures, so it is not looked at.
    subprocess.run(command, env=environment, check=False, cwd=work)
    if not seen.exists():
        print("Locust did not finish (its message is above)", file=sys.stderr)
        raise SystemExit(2)
    return json.loads(seen.read_text(encoding="utf-8"))


def count(given: argparse.Namespace, target: Path, marks: list[str], **common: object) -> dict:
    """What stands in the databases and at the log server. The last lines may still be on their way: they get a while."""
    deadline = time.monotonic() + 60
    while True:
        playbook(given.fleet_file, "count.yml", load_counts=str(target), **common)
        counts = json.loads(target.read_text(encoding="utf-8"))
        if counts["lines"] is None:
            return counts
        pairs = (line.split() for line in counts["lines"])
        counts["lines"] = {mark: int(times) for times, mark in pairs}
        if set(marks) <= set(counts["lines"]) or time.monotonic() > deadline:
            return counts
        time.sleep(2)


def judge(seen: dict, counts: dict[str, dict[str, int]], lines: dict[str, int] | None) -> dict:
    """Compare what was acknowledged to what stands in the databases and in the logs."""
    lost, doubled = [], []
    missing = [mark for mark in seen["marks"] if lines is not None and mark not in lines]
    twice = [mark for mark in seen["marks"] if lines is not None and lines.get(mark, 0) > 1]
    for number, tenant in seen["acknowledged"].items():
        if counts[tenant].get(number, 0) == 0:
            lost.append(int(number))
    for numbers in counts.values():
        doubled.extend(int(number) for number, times in numbers.items() if times > 1)
    kept = sum(len(numbers) for numbers in counts.values())
    return {
        "requests": seen["requests"],
        "failed_requests": len(seen["failures"]),
        "failed_reads": sum(name.startswith("GET") for _moment, name, _why in seen["failures"]),
        "lost_sessions": seen["lost_sessions"],
        "posts_sent": len(seen["sent"]),
        "posts_acknowledged": len(seen["acknowledged"]),
        "posts_in_the_databases": kept,
        "posts_lost": len(lost),
        "posts_doubled": len(doubled),
        "log_lines_expected": len(seen["marks"]) if lines is not None else 0,
        "log_lines_lost": len(missing),
        "log_lines_doubled": len(twice),
        "slowest_request_ms": round(seen["slowest"][1]),
        "slowest_request": seen["slowest"][0],
        "lost_numbers": sorted(lost)[:20],
        "doubled_numbers": sorted(doubled)[:20],
    }


def main() -> int:
    """Prepare, drive, count, judge."""
    given = arguments()
    run = f"r{int(time.time()):x}"
    with tempfile.TemporaryDirectory(prefix="moodle-load-") as folder:
        work = Path(folder)
        print("Making learners and a course …", file=sys.stderr, flush=True)
        common = {"load_tenants": given.tenants, "load_run": run}
        playbook(given.fleet_file, "prepare.yml", load_facts=str(work / "facts.json"), load_learners=given.users, **common)
        facts = json.loads((work / "facts.json").read_text(encoding="utf-8"))
        facts["learners"] = given.users
        (work / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        site = facts["tenants"][0]["site"]
        what = "the stand-in site" if site["standin"] else f"Moodle {site['release']}"
        print(f"{given.users} learners of {len(facts['tenants'])} sites ({what}), {given.rate:g} requests/s, {given.minutes:g} min …",
              file=sys.stderr, flush=True)
        began = time.monotonic()
        seen = drive(given, facts, work, run)
        seconds = round(time.monotonic() - began)
        counts = count(given, work / "counts.json", seen["marks"], **common)
        result = judge(seen, counts["posts"], counts["lines"])
    result = {"site": what, "run": run, "seconds": seconds} | result
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print()
    for key, value in result.items():
        if value != []:
            print(f"{key.replace('_', ' '):24} {value}")
    for moment, name, why in seen["failures"][:10]:
        print(f"failed at {time.strftime('%H:%M:%S', time.localtime(moment))}: {name}: {why}")
    bad = [key for key in BAD if result[key]]
    print("\n" + (f"NOT CLEAN: {', '.join(key.replace('_', ' ') for key in bad)}" if bad else "Clean: nothing failed, nothing was lost or doubled."))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
