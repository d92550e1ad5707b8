# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Is each tenant kept from every other? What the tenants map and the configuration of each tenant say about it. Pure."""

from __future__ import annotations

import ipaddress
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Wider than this is no list of balancers: 16 million addresses, or a site's whole IPv6.
WIDEST = {4: 8, 6: 32}
# What no two tenants may have in common, in the map.
OWN = ("wwwroot", "database_user", "database_password", "redis_user", "redis_password")
# Folders and prefixes of a tenant's configuration, as config.php made them.
FOLDERS = ("dataroot", "cachedir", "tempdir", "backuptempdir", "localcachedir", "localrequestdir")
PREFIXES = ("session_redis_prefix", "cache_prefix", "cache_localprefix")
FLAGS = {
    "sslproxy": (True, "TLS ends at the balancer"),
    "reverseproxy": (False, "the balancer forwards the host name"),
    "getremoteaddrconf": (1, "the balancer alone is believed"),
    "preventexecpath": (True, "no program may be chosen in a site"),
    "disableupdateautodeploy": (True, "code comes from releases alone"),
    "uninstallclionly": (True, "code comes from releases alone"),
}


@dataclass(frozen=True)
class Finding:
    """Something by which one tenant could reach another, or everybody could reach it."""

    kind: str
    tenant: str
    text: str
    other: str = ""

    def to_data(self) -> dict[str, str]:
        """Return it as data."""
        return asdict(self)

    def __str__(self) -> str:
        who = f"{self.tenant} → {self.other}" if self.other else self.tenant
        return f"{self.kind}: {who}: {self.text}"


class UnsafeError(ValueError):
    """The tenants map would open one tenant to another."""


def refuse(data: Mapping[str, Any]) -> None:
    """Raise for a tenants map that must not be written."""
    found = of_map(data)
    if found:
        raise UnsafeError("moodle_tenants: " + "; ".join(str(finding) for finding in found[:5]))


def of_map(data: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with a tenants map."""
    tenants = data["tenants"]
    findings = _of_fleet(data["fleet"])
    for name, entry in tenants.items():
        if entry["state"] not in ("active", "maintenance", "suspended"):
            findings.append(Finding("state", name, f"{entry['state']!r} is no state that is served"))
        if not str(entry["wwwroot"]).startswith("https://"):
            findings.append(Finding("proxy", name, f"its address {entry['wwwroot']} is not one of https"))
    for key in OWN:
        findings += _shared(key.split("_", maxsplit=1)[0] if key != "wwwroot" else "host", key, {
            name: entry[key] for name, entry in tenants.items()
        }, secret=key.endswith("password"))
    findings += _shared("user", "uid", {name: entry["uid"] for name, entry in tenants.items() if "uid" in entry})
    findings += _shared("database", "database", {
        name: (str(entry.get("dbhost", "")), str(entry["database"]).lower()) for name, entry in tenants.items()
    })
    for host, name in data["hosts"].items():
        if name not in tenants:
            findings.append(Finding("host", str(name), f"{host} leads to a tenant that there is not"))
    return findings


def _of_fleet(fleet: Mapping[str, Any]) -> list[Finding]:
    findings = []
    for network in fleet.get("balancer_networks", ()):
        try:
            parsed = ipaddress.ip_network(str(network), strict=False)
        except ValueError:
            findings.append(Finding("proxy", "fleet", f"balancer_networks: {network} is no network"))
            continue
        if parsed.prefixlen < WIDEST[parsed.version]:
            findings.append(Finding("proxy", "fleet", f"balancer_networks: {network} lets almost everybody say where a visitor comes from"))
    if "lock_factory" in fleet and "file_lock_factory" in str(fleet["lock_factory"]):
        findings.append(Finding("lock", "fleet", f"{fleet['lock_factory']} keeps locks in files, which a shared file system loses"))
    if "lock_factory" in fleet and not fleet["lock_factory"]:
        findings.append(Finding("lock", "fleet", "no lock factory is set, so Moodle would choose files on the shared file system"))
    return findings


def _shared(kind: str, what: str, values: Mapping[str, Any], secret: bool = False) -> list[Finding]:
    """The tenants that have a value in common with an earlier one."""
    first: dict[Any, str] = {}
    findings = []
    for name, value in values.items():
        if value in (None, ""):
            findings.append(Finding(kind, name, f"{what} is empty"))
        elif value in first:
            findings.append(Finding(kind, name, f"both have the same {what}" + ("" if secret else f": {_plain(value)}"), first[value]))
        else:
            first[value] = name
    return findings


def _plain(value: Any) -> str:
    return " ".join(filter(None, value)) if isinstance(value, tuple) else str(value)


def of_configurations(configurations: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """What is wrong with the tenants' configurations, as Moodle sees them."""
    findings: list[Finding] = []
    for name, found in configurations.items():
        for flag, (wanted, why) in FLAGS.items():
            # PHP's true and 1 are one to Moodle.
            if bool(found.get(flag)) != bool(wanted):
                findings.append(Finding("proxy" if "proxy" in flag or "addr" in flag else "flag", name, f"{flag} is {found.get(flag)!r}: {why}"))
        if not str(found.get("wwwroot", "")).startswith("https://"):
            findings.append(Finding("proxy", name, f"its address {found.get('wwwroot')} is not one of https"))
        if not found.get("lock_factory") or "file_lock" in str(found["lock_factory"]):
            findings.append(Finding("lock", name, f"lock_factory is {found.get('lock_factory')!r}: locks would be files on the shared file system"))
        if "redis" not in str(found.get("session_handler_class", "")) and "moodle_fleet" not in str(found.get("session_handler_class", "")):
            findings.append(Finding("session", name, "its sessions are not in Redis"))
    for key in PREFIXES:
        findings += _shared("session" if "session" in key else "cache", key, {name: one.get(key) for name, one in configurations.items()})
        findings += _beginnings(key, {name: str(one.get(key) or "") for name, one in configurations.items()})
    findings += _shared("database", "database", {name: (one.get("dbhost"), one.get("dbname")) for name, one in configurations.items()})
    findings += _shared("database", "dbuser", {name: one.get("dbuser") for name, one in configurations.items()})
    return findings + _folders(configurations)


def _beginnings(key: str, prefixes: Mapping[str, str]) -> list[Finding]:
    """A prefix that another one begins with: its pattern would catch the other's keys."""
    ordered = sorted((prefix, name) for name, prefix in prefixes.items() if prefix)
    return [
        Finding("session" if "session" in key else "cache", name, f"{key} {prefix} is the beginning of {longer}", other)
        for (prefix, name), (longer, other) in zip(ordered, ordered[1:]) if longer != prefix and longer.startswith(prefix)
    ]


def _folders(configurations: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Folders that two tenants share, or of which one lies in the other."""
    owners: dict[str, set[str]] = defaultdict(set)
    findings = []
    for name, found in configurations.items():
        for key in FOLDERS:
            path = str(found.get(key) or "")
            if not path.startswith("/"):
                findings.append(Finding("directory", name, f"{key} is {path!r}: it has to be a path of its own"))
            else:
                owners[os.path.normpath(path)].add(name)
    for path, names in owners.items():
        first, *rest = sorted(names)
        findings += [Finding("directory", other, f"both use {path}", first) for other in rest]
        above = os.path.dirname(path)
        while above != "/":
            for other in sorted(owners.get(above, set()) - names):
                findings.append(Finding("directory", first, f"{path} lies in a folder of the other", other))
            above = os.path.dirname(above)
    return findings


def summary(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings there are of each kind."""
    counts: dict[str, int] = defaultdict(int)
    for finding in findings:
        counts[finding.kind] += 1
    return dict(counts)
