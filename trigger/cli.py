# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command line: parses arguments, runs one check or shows what the ledger knows. Exit codes: usage.EXIT_CODES."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._check import (
    Outcome,
    check,
    explain,
    run,
    sources_of,
    status,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet, FleetFileError, load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._kept import KeptError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import (
    Ledger,
    LedgerError,
    Locked,
    Superseded,
    open_ledger,
    single_flight,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy
from ansible_collections.elearning.moodle_fleet.trigger import release, report, tenants, usage
from ansible_collections.elearning.moodle_fleet.trigger.act import actor

OK, WRONG_ARGUMENTS, WRONG_FILE, BLIND, FAILED, BUSY, INTERRUPTED = 0, 2, 3, 4, 5, 6, 130
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Wrong(Exception):
    """Arguments that can't be used. The message says which, and what to do."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, in place of argparse's lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise Wrong(usage.mistake(self.prog, message))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_given: object, **_more: object) -> NoReturn:
        print(f"{parser.prog} {usage.version()}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    try:
        return _run(parser.parse_args(argv))
    except Wrong as exc:
        code, message = WRONG_ARGUMENTS, str(exc)
    except (Locked, Superseded) as exc:
        code, message = BUSY, str(exc)
    except (FleetFileError, LedgerError, KeptError) as exc:
        code, message = WRONG_FILE, str(exc)
    except (CloudError, BalancerError) as exc:
        code, message = BLIND, str(exc)
    except KeyboardInterrupt:
        code, message = INTERRUPTED, usage.EXIT_CODES[INTERRUPTED]
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        code, message = WRONG_FILE, f"{where}{exc.strerror or exc}: check the path, its permissions and the room on the disk"
    print(f"moodle-fleet: {message}", file=sys.stderr)
    if "--json" in (sys.argv[1:] if argv is None else argv):
        _print_json({"error": message, "exit_code": code})
    return code


def _run(arguments: argparse.Namespace) -> int:
    command: Callable[..., int] = arguments.command
    if command is _completion:
        return command(arguments)
    if not arguments.fleet:
        raise Wrong("name the fleet file by --fleet or MOODLE_FLEET_FILE")
    fleet = load(arguments.fleet)
    return command(arguments, fleet, Policy.from_settings(fleet.scaling))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="moodle-fleet", description="Keeps the web nodes of a Moodle fleet as many as the load needs, and says why.",
        epilog=usage.main_epilog(), formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fleet", default=os.environ.get("MOODLE_FLEET_FILE", ""), metavar="FILE",
                        help="the fleet file (moodle_fleet.yml); default: MOODLE_FLEET_FILE")
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog=usage.epilog(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--fleet", default=argparse.SUPPRESS, metavar="FILE", help=argparse.SUPPRESS)
        sub.add_argument("--json", action="store_true", help="print data instead of text")
        sub.set_defaults(command=function)
        return sub

    one = add("check", _check, "one pass: observe, decide, plan and, if need be, act")
    one.add_argument("--dry-run", action="store_true", help="say what would be done; change and record nothing")
    one.add_argument("--desired", type=_whole(0), metavar="N", help="ask for this many web nodes, within the bounds")
    one.add_argument("--release", default="", help="launch new nodes from the image of this release")
    one.add_argument("--playbook", type=Path, metavar="FILE", help="instead of the collection's playbooks/scale.yml")
    one.add_argument("--timeout", type=_within(1, 7 * 86400), default=3600.0, metavar="S", help="seconds a run may take (3600)")
    one.add_argument("--awx-url", default=os.environ.get("MOODLE_FLEET_AWX_URL", ""), metavar="URL",
                     help="launch a job template of this AWX instead; default: MOODLE_FLEET_AWX_URL")
    one.add_argument("--awx-template", default=os.environ.get("MOODLE_FLEET_AWX_TEMPLATE", ""), metavar="T",
                     help="number or name of the job template; default: MOODLE_FLEET_AWX_TEMPLATE")
    one.add_argument("--awx-token-file", default=os.environ.get("MOODLE_FLEET_AWX_TOKEN_FILE", ""), metavar="FILE",
                     help="file with the token; default: MOODLE_FLEET_AWX_TOKEN_FILE, or the token itself in "
                          "MOODLE_FLEET_AWX_TOKEN")
    now = add("status", _status, "the fleet as it is now")
    now.add_argument("--watch", type=_within(0.2, 3600), nargs="?", const=5.0, metavar="S", help="again every S seconds (5) until Ctrl-C")
    told = add("explain", _explain, "the last decision in sentences")
    told.add_argument("check", nargs="?", type=int, help="number of another check")
    past = add("history", _history, "the latest checks")
    past.add_argument("-n", "--limit", type=_whole(1), default=20, metavar="N", help="how many (20)")
    past.add_argument("--all", action="store_true", help="also checks that had nothing to do")
    stop = add("pause", _pause, "stop scaling for a while")
    stop.add_argument("--in-only", action="store_true", help="only scaling in; the fleet may still grow")
    stop.add_argument("--reason", default="", help="why, for whoever reads the status")
    stop.add_argument("--for", dest="duration", type=_duration, default=0.0, metavar="TIME",
                      help="for 90s, 30m, 12h or 2d; without it until 'resume'")
    add("resume", _resume, "end every pause")
    add("completion", _completion, "what a shell needs to complete commands and options").add_argument(
        "shell", choices=("bash", "zsh", "fish", "tcsh", "powershell"), help="the shell that reads it")
    add("events", _events, "read what is coming, from the tenants' databases and the calendar, for the checks to know")
    add("tiers", _tiers, "read how busy database, cache and shared files are, for the checks to know")
    cap = add("capacity", _capacity, "what a node can take, and which tier is the nearest to its limit")
    for name, default, low, high, text in (
        ("--wait", 0.1, 0.0, 60.0, "seconds that 95 %% of the requests may wait for a worker"),
        ("--think", 30.0, 0, 3600, "seconds between an answer and the learner's next request"),
        ("--days", 14.0, 0.01, 3650, "how much of the ledger counts"),
    ):
        cap.add_argument(name, type=_within(low, high), default=default, metavar="X", help=f"{text} (%(default)g)")
    out = add("metrics", _metrics, "the latest check in Prometheus' text format")
    out.add_argument("--listen", default="", metavar="HOST:PORT", help="serve it at /metrics, and the web nodes' exporters at /targets, until Ctrl-C")
    out.add_argument("--out", type=Path, metavar="FILE", help="write it to a file that node_exporter reads (its name ends in .prom)")
    tell = add("notify", _notify, "tell people by the fleet file's channels what they should know, each thing once")
    tell.add_argument("--dry-run", action="store_true", help="say what would be told; tell and remember nothing")
    tell.add_argument("--test", action="store_true", help="send a test message to every channel")
    tenants.arguments(add("tenants", _tenants, "check, back up and restore tenants"))
    report.arguments(add("report", _report, "what the fleet did and why, as one HTML page"))
    release.arguments(add("release", _release, "bring all tenants to another release"))
    sim = add("simulate", _simulate, "let a simulated fleet with this policy follow a load trace")
    sim.add_argument("--trace", required=True, type=Path, metavar="FILE",
                     help="CSV with 'time,load' (seconds or ISO 8601; requests in service), a ledger's file, or 'ledger' for the fleet's own")
    sim.add_argument("--events", type=Path, metavar="FILE",
                     help="what is known ahead: an iCalendar file, or the events.json that 'moodle-fleet events' left")
    sim.add_argument("--past", type=Path, metavar="LEDGER",
                     help="begin with what a ledger knows (size, swing, weeks, launches): its file, or 'ledger' for the fleet's own")
    sim.add_argument("--plot", type=Path, metavar="FILE", help="also draw it, as one HTML page")
    for name, default, low, high, text in (
        ("--launch-seconds", 180.0, 1, 86400, "from the decision to the first request served"),
        ("--drain-seconds", 30.0, 0, 86400, "until a draining node has finished its requests"),
        ("--interval", 15.0, 1, 3600, "between two checks"),
        ("--metric-lag", 0.0, 0, 3600, "age of what a check sees"),
        ("--launch-failures", 0.0, 0, 1, "share of launches that never serve"),
        ("--node-life", 0.0, 0, 1e6, "mean hours until a node dies; 0: never"),
        ("--service-seconds", 0.25, 0.001, 3600, "mean time that serving a request takes"),
        ("--patience", 60.0, 0, 3600, "how long the balancer lets a request wait for a worker"),
    ):
        sim.add_argument(name, type=_within(low, high), default=default, metavar="X", help=f"{text} (%(default)g)")
    sim.add_argument("--price", type=_within(0, 1e9), metavar="P", help="price of a node-hour, to show the cost")
    sim.add_argument("--seed", type=int, default=1, help="of the failures' random numbers (%(default)d)")
    return parser


def _within(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: give a number from {low:g} to {high:g}")
        return value
    return number


def _whole(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= 1_000_000:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, {low} or more")
        return int(text)
    return number


def _duration(text: str) -> float:
    unit = _UNITS.get(text[-1:].lower())
    try:
        seconds = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 10 * 366 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; give for example 30m or 12h")
    return seconds


def _check(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    act = None if arguments.dry_run else actor(arguments, fleet)
    if isinstance(act, str):
        raise Wrong(act)
    if act is None:
        with open_ledger(fleet, trace=False) as ledger:
            outcome = check(policy, ledger, sources_of(fleet), origin="dry run", manual=arguments.desired,
                            release=arguments.release, record=False)
    else:
        with single_flight(fleet, "check") as lock, open_ledger(fleet) as ledger:
            origin = "check" if arguments.desired is None else "by hand"
            outcome = run(policy, ledger, sources_of(fleet), lambda planned: act(planned, lock), origin=origin,
                          manual=arguments.desired, release=arguments.release)
            if fleet.metrics.get("textfile"):
                _write_metrics(fleet, policy, ledger)
    if arguments.json:
        _print_json(outcome.to_data())
    else:
        _print_outcome(outcome, dry_run=arguments.dry_run)
    if outcome.status == "failed":
        return FAILED
    return BLIND if outcome.errors else OK


def _write_metrics(fleet: Fleet, policy: Policy, ledger: Ledger) -> None:
    """The check's metrics as a file. It has done its work: that nobody can see it is a warning, no failure."""
    from ansible_collections.elearning.moodle_fleet.trigger import metrics

    try:
        metrics.write(Path(fleet.metrics["textfile"]), metrics.render(fleet.name, policy, ledger, time.time()))
    except (metrics.MetricsError, LedgerError) as exc:
        print(f"moodle-fleet: {exc}", file=sys.stderr)


def _metrics(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    from ansible_collections.elearning.moodle_fleet.trigger import metrics

    def page() -> str:
        with open_ledger(fleet, trace=False) as ledger:
            return metrics.render(fleet.name, policy, ledger, time.time())

    if arguments.out and arguments.out.suffix != ".prom":
        raise Wrong(f"--out {arguments.out}: give a name that ends in .prom: node_exporter reads no other")
    try:
        if arguments.listen:
            metrics.serve(arguments.listen, {
                "/metrics": (metrics.TEXT, page),
                "/targets": ("application/json", lambda: metrics.targets(sources_of(fleet).nodes())),
            })
            return OK
        text = page()
        if arguments.out:
            metrics.write(arguments.out, text)
    except metrics.MetricsError as exc:
        raise Wrong(str(exc)) from exc
    if arguments.json:
        _print_json({"fleet": fleet.name, "series": metrics.series(text)})
    elif not arguments.out:
        print(text, end="")
    return OK


def _notify(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    from ansible_collections.elearning.moodle_fleet.trigger import notify

    with single_flight(fleet, "notify"), open_ledger(fleet) as ledger:
        told, failed = notify.run(fleet, policy, ledger, time.time(), dry_run=arguments.dry_run, test=arguments.test)
    if arguments.json:
        _print_json({"told": told, "failed": failed})
    elif told or not failed:
        print("\n".join(told or ["Nothing new to tell."]))
    for line in failed:
        print(f"moodle-fleet: {line}", file=sys.stderr)
    return FAILED if failed else OK


def _status(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    def read() -> dict[str, object]:
        with open_ledger(fleet, trace=False) as ledger:
            return status(policy, ledger, sources_of(fleet))

    from ansible_collections.elearning.moodle_fleet.trigger import output

    if arguments.watch:
        try:
            if arguments.json:
                output.watch_lines(lambda: {"fleet": fleet.name, **read()}, arguments.watch)
            else:
                output.watch(fleet.name, read, arguments.watch)
        except KeyboardInterrupt:
            return OK
    data = read()
    if arguments.json:
        _print_json({"fleet": fleet.name, **data})
    else:
        output.status(fleet.name, data)
    return BLIND if data["errors"] else OK


def _explain(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    with open_ledger(fleet, trace=False) as ledger:
        rows = ledger.checks(1, check=arguments.check)
        activities = ledger.activities(rows[0]["id"]) if rows else []
    if not rows:
        if arguments.check is not None:
            raise Wrong(f"the ledger knows no check {arguments.check}; 'moodle-fleet history --all' lists those it knows")
        print("No check was made yet.", file=sys.stderr)
        if arguments.json:
            _print_json({})
        return OK
    if arguments.json:
        _print_json({**rows[0], "activities": activities})
    else:
        print("\n".join(explain(rows[0], activities)))
    return OK


def _history(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    with open_ledger(fleet, trace=False) as ledger:
        rows = ledger.checks(arguments.limit, acted_only=not arguments.all)
        for row in rows:
            row["activities"] = ledger.activities(row["id"])
    if arguments.json:
        _print_json({"checks": rows})
    else:
        from ansible_collections.elearning.moodle_fleet.trigger import output

        output.history(rows)
    return OK


def _simulate(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.trace import TraceError
    from ansible_collections.elearning.moodle_fleet.trigger.simulate import run_command

    try:
        data, text = run_command(fleet, policy, arguments)
    except TraceError as exc:
        raise Wrong(str(exc)) from exc
    if arguments.json:
        _print_json({"fleet": fleet.name, **data})
    else:
        print(text)
    return OK


def _report(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    from ansible_collections.elearning.moodle_fleet.trigger.report import command

    try:
        data, text = command.run(arguments, fleet, policy)
    except command.ReportError as exc:
        raise Wrong(str(exc)) from exc
    if arguments.json:
        _print_json({"fleet": fleet.name, **data})
    else:
        print(text)
    return OK


def _pause(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    now = time.time()
    scope = "in" if arguments.in_only else "all"
    until = now + arguments.duration if arguments.duration else 0.0
    with open_ledger(fleet) as ledger:
        ledger.pause(scope, arguments.reason, now, until)
    what = "Scaling in" if scope == "in" else "Scaling"
    end = time.strftime("until %Y-%m-%d %H:%M:%S", time.localtime(until)) if until else "until 'moodle-fleet resume'"
    if arguments.json:
        _print_json({"scope": scope, "reason": arguments.reason, "since": now, "until": until})
    else:
        print(f"{what} is paused {end}.")
    return OK


def _resume(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    with open_ledger(fleet) as ledger:
        ended = ledger.resume(time.time())
    if arguments.json:
        _print_json({"ended": ended})
    else:
        print(f"{ended} pause{'s' if ended != 1 else ''} ended." if ended else "Nothing was paused.")
    return OK


def _events(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    from ansible_collections.elearning.moodle_fleet.trigger import events

    if not fleet.events:
        raise FleetFileError(fleet.path, "events: is missing: say 'events: {tenants: true}' to have quizzes and assignments read, or "
                                         "'events: {tenants: false, calendar: FILE}'")
    now = time.time()
    with open_ledger(fleet, trace=False) as ledger:
        data = events.refresh(fleet, policy, ledger, now)
    if arguments.json:
        _print_json(data)
    else:
        print("\n".join(events.lines(data, now)))
    return BLIND if data["failures"] else OK


def _tiers(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    from ansible_collections.elearning.moodle_fleet.trigger import capacity

    data = capacity.look(fleet)
    if arguments.json:
        _print_json({"fleet": fleet.name, **data})
    else:
        print("\n".join(capacity.tier_lines(data)))
    return BLIND if data["failures"] else OK


def _capacity(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    from ansible_collections.elearning.moodle_fleet.trigger import capacity

    data = capacity.look(fleet)
    with open_ledger(fleet, trace=False) as ledger:
        data |= capacity.model(policy, ledger, time.time(), arguments)
    data["bottleneck"], data["bottleneck_share"] = capacity.bottleneck(data)
    if arguments.json:
        _print_json({"fleet": fleet.name, **data})
    else:
        print("\n".join(capacity.lines(fleet.name, data)))
    return BLIND if data["failures"] else OK


def _tenants(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    code, data, message = tenants.run(arguments, fleet)
    return _print_report(arguments, code, data, tenants.lines(arguments.action, data), message)


def _release(arguments: argparse.Namespace, fleet: Fleet, policy: Policy) -> int:
    code, data, message = release.run(arguments, fleet)
    return _print_report(arguments, code, data, release.lines(data) if "tenants" in data else [], message)


def _print_report(arguments: argparse.Namespace, code: int, data: Mapping[str, object], lines: Sequence[str], message: str) -> int:
    if arguments.json:
        _print_json({**data, "error": message, "exit_code": code} if message else data)
    elif lines:
        print("\n".join(lines))
    if message:
        print(f"moodle-fleet: {message}", file=sys.stderr)
    return code


def _completion(arguments: argparse.Namespace) -> int:
    try:
        script = usage.completion(arguments.shell)
    except ImportError as exc:
        raise Wrong("completion needs the package argcomplete: pip install argcomplete") from exc
    if arguments.json:
        _print_json({"shell": arguments.shell, "script": script})
    else:
        print(script)
    return OK


def _print_json(data: object) -> None:
    import json

    print(json.dumps(data, indent=2, ensure_ascii=False))


def _print_outcome(outcome: Outcome, *, dry_run: bool) -> None:
    row = {"id": outcome.check or "-", "origin": "dry run" if dry_run else "now", "started": time.time(),
           "status": outcome.status, "message": outcome.message, "decision": outcome.decision.to_data(),
           "plan": outcome.plan.to_data()}
    print("\n".join(explain(row, outcome.activities)))
    for error in outcome.errors:
        print(f"moodle-fleet: {error}", file=sys.stderr)
