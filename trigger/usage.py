# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ``--help`` says beyond the options, and what a shell needs to complete them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

EXIT_CODES = {
    0: "nothing to do, or done",
    1: "a fault in the program",
    2: "wrong arguments, or a trace that cannot be used",
    3: "the fleet file, the ledger or a file beside them cannot be used",
    4: "the cloud or the balancer did not answer; nothing was taken away",
    5: "the plan was not carried out; the next check tries again",
    6: "another check is under way, or has planned meanwhile",
    130: "interrupted; the next check goes on from what it finds",
}

# By command: examples (a command line, what it is for) and what else is worth knowing.
EXAMPLES: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "check": (
        (
            ("moodle-fleet check", "what the timer runs: mostly there is nothing to do"),
            ("moodle-fleet check --dry-run", "what the next check would do, and why"),
            ("moodle-fleet check --desired 5", "five web nodes now; later checks decide again by the load"),
            ("moodle-fleet check --awx-url https://awx.example.org --awx-template 42 --awx-token-file /etc/moodle-fleet/token",
             "let AWX carry it out"),
        ),
        "A check may be ended at any point: the next one sees what is there and goes on.",
    ),
    "status": (
        (
            ("moodle-fleet status", "nodes, phases, load, the last check, what the next would do"),
            ("moodle-fleet status --json", "the same for monitoring: .errors, .phases, .sample.load"),
        ),
        "Asks the cloud and the balancer; changes and records nothing.",
    ),
    "explain": (
        (("moodle-fleet explain", "the last decision"), ("moodle-fleet explain 1234", "that of check 1234, as 'history' lists them")),
        "Tells every reason in the order in which they were weighed, and what became of each step.",
    ),
    "history": (
        (("moodle-fleet history -n 5", "the last five checks that did something"),
         ("moodle-fleet history --all --json", "also those that had nothing to do, as data")),
        "",
    ),
    "pause": (
        (("moodle-fleet pause --in-only --for 2h --reason exams", "may grow, may not shrink, for two hours"),
         ("moodle-fleet pause --reason 'database is being moved'", "hold everything until 'moodle-fleet resume'")),
        "A pause outlives restarts: it stands in the ledger. The bounds min_nodes and max_nodes are kept all the same.",
    ),
    "resume": ((("moodle-fleet resume", "end every pause; the next check decides"),), ""),
    "tenants": (
        (
            ("moodle-fleet tenants apply", "after a change of the tenants' list"),
            ("moodle-fleet tenants check", "try for every pair that one cannot read the other's files, rows and sessions"),
            ("moodle-fleet tenants backup acme globex", "two of them; without names all"),
            ("moodle-fleet tenants restore acme --snapshot 1a2b3c4d --overwrite", "back to an earlier state"),
            ("moodle-fleet tenants restore acme-test --from acme", "a copy of acme's newest backup"),
        ),
        "",
    ),
    "events": (
        (("moodle-fleet events", "what its timer runs; prints what is coming and what could not be read"),),
        "A check reads only what this has kept: it never waits for a tenant's database.",
    ),
    "tiers": ((("moodle-fleet tiers", "what its timer runs; prints how near each tier is to its limit"),), ""),
    "capacity": (
        (("moodle-fleet capacity", "requests a second and learners that a node carries, and the tier that will be full first"),
         ("moodle-fleet capacity --wait 0.5 --think 60", "for patient readers")),
        "",
    ),
    "metrics": (
        (("moodle-fleet metrics", "once, to the terminal"),
         ("moodle-fleet metrics --listen 127.0.0.1:9709", "for Prometheus to scrape"),
         ("moodle-fleet metrics --out /var/lib/prometheus/node-exporter/moodle_fleet.prom", "for node_exporter's text file collector")),
        "",
    ),
    "notify": (
        (("moodle-fleet notify", "what its timer runs: tells what is new"), ("moodle-fleet notify --test", "whether the channels work")),
        "",
    ),
    "report": (
        (("moodle-fleet report --out report.html", "all that the ledger has"),
         ("moodle-fleet report --out week.html --since 7d", "the last week")),
        "One file that needs no network.",
    ),
    "release": (
        (("moodle-fleet release run --version v4.5.7 --canary acme", "all tenants, acme first"),
         ("moodle-fleet release status", "how far each tenant is; from another terminal as well")),
        "A run that was ended anywhere goes on when it is started again.",
    ),
    "simulate": (
        (
            ("moodle-fleet simulate --trace ledger", "the load of the past, with the policy of today"),
            ("moodle-fleet simulate --trace exam.csv --launch-seconds 90 --price 0.12 --plot exam.html", "what an exam would cost"),
            ("moodle-fleet simulate --trace tomorrow.csv --past ledger", "a load that is to come, for the fleet as it is now"),
        ),
        "Reads the fleet file for the policy alone; neither cloud nor balancer is contacted.",
    ),
    "completion": (
        (
            ("moodle-fleet completion bash", "append it to ~/.bashrc, or write it to /etc/bash_completion.d/moodle-fleet"),
            ("moodle-fleet completion zsh", "write it to a folder of $fpath, as _moodle-fleet"),
            ("moodle-fleet completion fish", "write it to ~/.config/fish/completions/moodle-fleet.fish"),
        ),
        "",
    ),
}

_MAIN = """\
exit codes:
{codes}

environment:
  MOODLE_FLEET_FILE             the fleet file, where --fleet is not given
  MOODLE_FLEET_LEDGER_PASSWORD  of a ledger in MariaDB, where no file holds it
  MOODLE_FLEET_AWX_URL, _TEMPLATE, _TOKEN, _TOKEN_FILE
                                the job template that carries plans out
  NO_COLOR                      no colours, on a terminal as well

'moodle-fleet COMMAND --help' has examples.
"""


def mistake(program: str, message: str) -> str:
    """What argparse complains of, with what to do."""
    found = re.search(r"(.*invalid choice: '?([^' ]*)'?) \(choose from (.*)\)", message)
    if not found:
        return f"{message}; '{program} --help' has examples"
    import difflib

    known = re.findall(r"[\w.-]+", found[3])
    near = difflib.get_close_matches(found[2], known, n=1)
    return f"{found[1]}; " + (f"did you mean '{near[0]}'?" if near else f"use one of: {', '.join(known)}")


def version() -> str:
    """The version of this checkout, collection or package."""
    root = Path(__file__).parents[1]
    for name, pattern in (("galaxy.yml", r"^version: *(\S+)"), ("MANIFEST.json", r'"version": *"([^"]+)"')):
        with contextlib.suppress(OSError):
            found = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.M)
            if found:
                return found[1]
    from importlib.metadata import version as installed

    return installed("moodle-fleet")


def main_epilog() -> str:
    """What stands below the list of commands."""
    return _MAIN.format(codes="\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items()))


def epilog(command: str) -> str:
    """Examples of a command; each line of them can be run as it stands."""
    examples, note = EXAMPLES.get(command, (((f"moodle-fleet {command} --json", "as data"),), ""))
    lines = [f"  $ {line}\n      {text}" for line, text in examples]
    return "\n".join(["examples:", *lines, *(["", note] if note else [])])


def completion(shell: str) -> str:
    """What a shell has to read so that it completes the command's arguments.

    :raises ImportError: without the package argcomplete.
    """
    from argcomplete.shell_integration import shellcode

    return shellcode(["moodle-fleet"], shell=shell)
