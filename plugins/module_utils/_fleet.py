# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Loads and validates ``moodle_fleet.yml``, once for the inventory, the modules and the command line.

Nothing is contacted here: a wrong file is refused before anything is read from a cloud or changed.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy, validate_policy
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._schema import (
    Field,
    Problem,
    apply,
    apply_fields,
)

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers.base import BalancerReader
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudDriver
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node

PLUGIN = "elearning.moodle_fleet.fleet"


# Import statements, not importlib: Ansible packs into a module only what it finds imported. Inside functions: a check
# that runs every 15 s loads no driver that it does not use.
def _podman() -> ModuleType:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import podman

    return podman


def _aws() -> ModuleType:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import aws

    return aws


def _static() -> ModuleType:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import static

    return static


def _haproxy() -> ModuleType:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers import haproxy

    return haproxy


def _alb() -> ModuleType:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._balancers import alb

    return alb


# A new driver is one module here that holds SETTINGS and `driver(fleet)` or `reader(fleet, addresses, nodes)`. A cloud that
# has only so many servers also holds `fits(cloud, wanted)`.
CLOUDS = {"podman": _podman, "aws": _aws, "static": _static}
BALANCERS = {"haproxy": _haproxy, "alb": _alb}


class FleetFileError(Exception):
    """The fleet file can't be used. The message names the file and, for each problem, key, value and remedy."""

    def __init__(self, path: str | os.PathLike[str], problems: list[Problem] | str):
        self.problems = problems if isinstance(problems, list) else []
        text = problems if isinstance(problems, str) else "; ".join(str(problem) for problem in problems)
        super().__init__(f"{path}: {text}")


@dataclass(frozen=True)
class Fleet:
    """A validated fleet file with every default filled in.

    ``cloud``, ``balancer``, ``services``, ``scaling`` and ``events`` are the file's sections, the last one empty where nothing
    is to be known ahead; ``state_dir`` is the controller's folder for this fleet (keys, host keys, ledger). ``ledger`` has its
    endpoint and ``tls`` filled in from the database service.
    """

    name: str
    path: Path
    state_dir: Path
    cloud: Mapping[str, Any]
    balancer: Mapping[str, Any]
    services: Mapping[str, Mapping[str, Any]]
    scaling: Mapping[str, Any]
    events: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    notifications: Mapping[str, Any] = field(default_factory=dict)
    ledger: Mapping[str, Any] = field(default_factory=dict)
    # Of a ledger in MariaDB, where a module was given it; else it is found when it is needed.
    ledger_password: str = field(default="", repr=False)


def _calendar_problem(value: str) -> str | None:
    scheme = value.partition("://")[0]
    if not value.strip() or scheme != value and scheme not in ("https", "http"):
        return "give an iCalendar file (relative to this file) or its https address"
    return None


def _endpoint_problem(value: str) -> str | None:
    host, colon, port = value.rpartition(":")
    if colon and host and port.isdigit() and 0 < int(port) < 65536:
        return None
    return "write it as host:port, for example db.example.org:3306"


def _network_problem(value: str) -> str | None:
    try:
        ipaddress.ip_network(value)
    except ValueError as exc:
        return f"write a network such as 10.0.0.0/16 ({exc})"
    return None


_COUNT = Field(int, default=1, minimum=0, maximum=9, help="nodes of this role")
_SHAPE = {
    "cpus": Field(float, minimum=0.05, help="CPUs of a node, where the cloud can limit them (podman)"),
    "memory_mb": Field(int, minimum=64, help="memory of a node, where the cloud can limit it (podman)"),
    "publish": Field(list, default=[], items=Field(str),
                     help="ports of the first node that the machine itself offers, such as `127.0.0.1:8443:443` (podman)"),
}
_ENDPOINT = Field(str, check=_endpoint_problem, help="host:port of a service that is managed elsewhere: then there is no node of this role")
_TLS = Field(bool, default=False, help="reach it by TLS")


def _service(**more: Field) -> Field:
    return Field(dict, fields={"count": _COUNT, "endpoint": _ENDPOINT, **_SHAPE, **more})


SERVICES = {
    "balancer": Field(dict, fields={"count": _COUNT, **_SHAPE}),
    "web": Field(dict, fields=_SHAPE),
    "database": _service(tls=_TLS),
    "cache": _service(
        muc_endpoint=Field(str, check=_endpoint_problem, help="host:port of the caches, where `endpoint` has the sessions"),
        tls=_TLS,
        shared_user=Field(bool, default=False, help="a managed cache may know one user alone: then all tenants share it, and their "
                                                    "prefixes alone keep them apart"),
    ),
    "jobs": Field(dict, fields={"count": _COUNT, **_SHAPE}),
    "logs": _service(),
    "monitoring": Field(dict, help="none unless it is asked for", fields={
        "count": Field(int, default=0, minimum=0, maximum=1, help="nodes of this role"), **_SHAPE,
    }),
    "files": Field(dict, help="shared files as a mount on every web and jobs node; without it the cloud driver's own shared volume", fields={
        "src": Field(str, required=True, help="what is mounted, such as `files.example.org:/moodledata`"),
        "fstype": Field(str, default="nfs4", help="kind of the file system"),
        "opts": Field(str, default="vers=4.1,hard,timeo=600,retrans=2,noresvport", help="options of the mount"),
    }),
}

ALERTS = ("at_maximum", "launches_failed", "paused", "brakes", "checks_failing")


def _one_way(value: Mapping[str, Any], name: str) -> str | None:
    """A remedy unless a secret is given in exactly one of the two ways; the fleet file itself holds none."""
    if bool(value.get(f"{name}_env")) != bool(value.get(f"{name}_file")):
        return None
    return f"give either {name}_env (an environment variable) or {name}_file (a file): it is a secret"


def _hook_problem(value: Mapping[str, Any]) -> str | None:
    return _one_way(value, "url")


def _mail_problem(value: Mapping[str, Any]) -> str | None:
    if not value["to"]:
        return "give at least one address in 'to'"
    if not value.get("user"):
        return None
    return "a password needs tls: starttls or tls: tls" if value["tls"] == "none" else _one_way(value, "password")


def _hook(text: str) -> Field:
    return Field(dict, check=_hook_problem, help=text, fields={
        "url_env": Field(str, help="environment variable that holds the address"),
        "url_file": Field(str, help="file that holds the address, instead"),
    })


_ADDRESS = Field(str, pattern="[^@ <>,\r\n]+@[^@ <>,\r\n]+")


def _minutes(default: float, text: str) -> Field:
    return Field(float, default=default, minimum=0, maximum=10080, help=text)


_NOTIFICATIONS = {
    "on": Field(list, default=list(ALERTS), items=Field(str, choices=ALERTS), help="what is told"),
    "repeat_hours": Field(float, default=4.0, minimum=0.1, maximum=168, help="hours after which what lasts is told again"),
    "maximum_minutes": _minutes(5.0, "how long a fleet is at its maximum until that is told"),
    "paused_minutes": _minutes(120.0, "how old a pause is until it is told"),
    "brakes_minutes": _minutes(10.0, "how long a brake holds the fleet until that is told"),
    "failing_minutes": _minutes(5.0, "how long checks fail, hang or are not made until that is told"),
    "webhook": _hook("anything that takes a POST of JSON"),
    "chat": _hook("Slack's, Mattermost's and the like"),
    "mail": Field(dict, check=_mail_problem, help="messages by mail", fields={
        "server": Field(str, required=True, check=_endpoint_problem, help="host:port of the mail server"),
        "from": Field(str, required=True, pattern=_ADDRESS.pattern, help="sender's address"),
        "to": Field(list, required=True, items=_ADDRESS, help="receivers' addresses"),
        "tls": Field(str, default="starttls", choices=("starttls", "tls", "none"), help="how the connection is encrypted"),
        "user": Field(str, help="name to log in with"),
        "password_env": Field(str, help="environment variable that holds the password"),
        "password_file": Field(str, help="file that holds the password, instead"),
    }),
}

TOP = {
    "plugin": Field(str, required=True, choices=(PLUGIN,), help="makes the file an inventory source"),
    "fleet": Field(str, required=True, pattern="[a-z][a-z0-9-]{0,19}", help="name of the fleet, and the beginning of its nodes' names"),
    "state_dir": Field(str, help="the controller's folder of this fleet (keys, host keys, ledger), relative to the file; "
                                 "default: `~/.local/state/moodle-fleet/FLEET`"),
    "cloud": Field(dict, required=True, help="where nodes come from"),
    "balancer": Field(dict, default={"driver": "haproxy"}, help="what spreads the requests"),
    "services": Field(dict, default={}, fields=SERVICES, help="the tiers, and how many nodes of each"),
    "scaling": Field(dict, default={}, help="how many web nodes there are"),
    "events": Field(dict, help="what is known ahead; without this section, nothing", fields={
        "tenants": Field(bool, default=True, help="quizzes and assignments of all tenants, from their databases"),
        "calendar": Field(str, check=_calendar_problem, help="the operator's iCalendar file, relative to this file, or its address"),
    }),
    "costs": Field(dict, default={}, help="what a web node costs, for the report", fields={
        "node_hour": Field(float, default=0.0, minimum=0, help="price of a node for an hour"),
        "currency": Field(str, default="", pattern="[A-Za-z€$£¥ .]{0,12}", help="what stands beside the price"),
    }),
    "metrics": Field(dict, default={}, help="the fleet's numbers for Prometheus", fields={
        "textfile": Field(str, pattern="/.+[.]prom", help="file that each check writes, for node_exporter's collector"),
    }),
    "notifications": Field(dict, default={}, fields=_NOTIFICATIONS, help="who is told of what"),
    "ledger": Field(dict, default={}, help="where the history is kept, and the lock that lets one check at a time run", fields={
        "driver": Field(str, default="sqlite", choices=("sqlite", "mariadb"),
                        help="`sqlite`: files in `state_dir`; `mariadb`: a database, for controllers that keep no disk"),
        "endpoint": Field(str, check=_endpoint_problem, help="host:port of MariaDB; default: that of `services.database`"),
        "database": Field(str, default="fleet_ledger", pattern="[a-z][a-z0-9_]{0,47}", help="database of the ledger alone"),
        "user": Field(str, default="fleet_ledger", pattern="[a-z][a-z0-9_]{0,31}", help="account of the ledger alone"),
        "tls": Field(bool, help="reach it by TLS; default: as `services.database`"),
        "password_file": Field(str, help="file with the password, relative to this file; default: `ledger.password` in `state_dir`, where "
                                         "site.yml writes it. The environment variable MOODLE_FLEET_LEDGER_PASSWORD goes before it"),
    }),
    "management_networks": Field(list, default=[], items=Field(str, check=_network_problem),
                                 help="networks that may read HAProxy's counters"),
    # Ansible's own inventory options pass through.
    "cache": Field(bool), "cache_plugin": Field(str), "cache_timeout": Field(int), "cache_connection": Field(str),
    "cache_prefix": Field(str), "compose": Field(dict), "groups": Field(dict), "keyed_groups": Field(list),
    "strict": Field(bool), "use_extra_vars": Field(bool), "leading_separator": Field(bool), "phases": Field(bool),
}


def _driver_section(
    key: str, section: Mapping[str, Any], known: Mapping[str, Callable[[], ModuleType]], problems: list[Problem]
) -> dict[str, Any]:
    """Check ``cloud`` or ``balancer`` against the settings of the driver it names."""
    name = section.get("driver")
    if not isinstance(name, str) or name not in known:
        problems.append(Problem(f"{key}.driver", name, f"unknown driver, use one of: {', '.join(known)}"))
        return {}
    settings = known[name]().SETTINGS
    return apply_fields(key, section, {"driver": Field(str, required=True), **settings}, problems)


def _scaling_section(section: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    problems.extend(Problem(f"scaling.{key}", value, remedy) for key, value, remedy in validate_policy(section))
    return dict(section)


def _ledger_section(given: dict[str, Any], named: Mapping[str, Any], database: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """What is left out is that of the database service. ``named`` is the section as it stands in the file."""
    if given["driver"] == "sqlite":
        problems.extend(
            Problem(f"ledger.{key}", value, "needs driver: mariadb; a ledger in SQLite is a file in state_dir")
            for key, value in named.items() if key in given and key != "driver"
        )
        return given
    if not given["endpoint"] and not database.get("endpoint"):
        problems.append(Problem("ledger.endpoint", None, "is missing: give host:port of the database, for example db.example.org:3306"))
    tls = given["tls"] if given["tls"] is not None else not given["endpoint"] and database.get("tls", False)
    return {**given, "endpoint": given["endpoint"] or database.get("endpoint"), "tls": bool(tls)}


def _fits_alb(top: dict[str, Any], problems: list[Problem]) -> None:
    """An Application Load Balancer serves EC2 instances, and needs no balancer nodes."""
    if isinstance(top.get("cloud"), Mapping) and top["cloud"].get("driver") not in (None, "aws"):
        problems.append(Problem("balancer.driver", "alb", "needs cloud.driver: aws; use haproxy with this cloud"))
    services = top.get("services")
    if isinstance(services, Mapping):
        given = services.get("balancer")
        if given and given.get("count") not in (None, 0, 1):
            problems.append(Problem("services.balancer.count", given["count"], "remove it: with an ALB there are no balancer nodes"))
        top["services"] = {**services, "balancer": {**(given or {}), "count": 0}}


def validate(values: Any, path: str | os.PathLike[str]) -> Fleet:
    """Check the parsed content of a fleet file.

    :raises FleetFileError: naming every problem at once.
    """
    if not isinstance(values, Mapping):
        raise FleetFileError(path, f"must hold a mapping that starts with 'plugin: {PLUGIN}'")
    problems: list[Problem] = []
    top = apply_fields("", values, TOP, problems)
    if isinstance(top.get("cloud"), Mapping):
        top["cloud"] = _driver_section("cloud", top["cloud"], CLOUDS, problems)
    if isinstance(top.get("balancer"), Mapping):
        top["balancer"] = _driver_section("balancer", top["balancer"], BALANCERS, problems)
    if isinstance(top.get("balancer"), Mapping) and top["balancer"].get("driver") == "alb":
        _fits_alb(top, problems)
    top["scaling"] = _scaling_section(top.get("scaling") or {}, problems)
    if not problems:
        given = top["ledger"] or apply("ledger", {}, TOP["ledger"], problems)
        top["ledger"] = _ledger_section(given, values.get("ledger") or {}, top["services"].get("database") or {}, problems)
    if problems:
        raise FleetFileError(path, problems)
    services = {}
    for name, spec in SERVICES.items():
        given = top["services"].get(name)
        if given is None and name != "files":
            given = apply(f"services.{name}", {}, spec, problems)
        services[name] = given or {}
    fits = getattr(CLOUDS[top["cloud"]["driver"]](), "fits", None)
    if fits is not None:
        wanted = {name: 0 if given.get("endpoint") else given["count"] for name, given in services.items() if "count" in given}
        problems.extend(fits(top["cloud"], {**wanted, "web": Policy.from_settings(top["scaling"]).max_nodes}))
        if problems:
            raise FleetFileError(path, problems)
    state_dir = top["state_dir"] or f"~/.local/state/moodle-fleet/{top['fleet']}"
    return Fleet(
        name=top["fleet"],
        path=Path(path).absolute(),
        state_dir=Path(os.path.abspath(Path(path).absolute().parent / Path(state_dir).expanduser())),
        cloud=top["cloud"],
        balancer={**top["balancer"], "management_networks": top["management_networks"]},
        services=services,
        scaling=top["scaling"],
        events=top["events"] or {},
        costs=top["costs"],
        metrics=top["metrics"],
        notifications=top["notifications"],
        ledger=top["ledger"],
    )


def load(path: str | os.PathLike[str], ledger_password: str | None = None) -> Fleet:
    """Read and check a fleet file. ``ledger_password`` is kept for who opens the ledger.

    :raises FleetFileError: when it can't be read, is not YAML, or holds a mistake.
    """
    try:
        import yaml
    except ImportError as exc:
        raise FleetFileError(path, "PyYAML is needed to read it: pip install -r requirements.txt") from exc
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        raise FleetFileError(path, f"can't be read: {exc.strerror}; name the fleet file (moodle_fleet.yml)") from exc
    try:
        # The C parser is ten times faster; the check that runs every 15 s starts here.
        values = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as exc:
        raise FleetFileError(path, f"is not valid YAML: {' '.join(str(exc).split())}") from exc
    fleet = validate(values, path)
    return replace(fleet, ledger_password=ledger_password) if ledger_password else fleet


def cloud_driver(fleet: Fleet) -> CloudDriver:
    """The driver that ``cloud.driver`` names."""
    driver: CloudDriver = CLOUDS[fleet.cloud["driver"]]().driver(fleet)
    return driver


def balancer_reader(fleet: Fleet, addresses: list[str], nodes: Sequence[Node] = ()) -> BalancerReader:
    """A reader of the fleet's balancers; ``addresses`` are those of its balancer nodes, ``nodes`` all of its nodes."""
    reader: BalancerReader = BALANCERS[fleet.balancer["driver"]]().reader(fleet, addresses, nodes)
    return reader


__all__ = ["Fleet", "FleetFileError", "balancer_reader", "cloud_driver", "load", "validate"]
