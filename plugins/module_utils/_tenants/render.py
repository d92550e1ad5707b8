# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The files that tell a node which tenants there are. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _secrets
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.definition import (
    DEFAULT_SERVER,
    Tenant,
    TenantError,
    uses_tls,
)

NOTE = "Written by Ansible; changes made here are lost."


def php(value: object) -> str:
    """Return a Python value as a PHP literal."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "[" + ", ".join(f"{php(str(key))} => {php(item)}" for key, item in value.items()) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, Sequence):
        return "[" + ", ".join(php(item) for item in value) + "]"
    raise TypeError(f"no PHP literal for {type(value).__name__}")


def wwwroot(tenant: Tenant, public_port: int = 443) -> str:
    """Return the address of a tenant's site: its first host name, always by TLS."""
    return f"https://{tenant.hosts[0]}" + ("" if public_port == 443 else f":{public_port}")


def tenants_php(tenants: Iterable[Tenant], secret: str, fleet: Mapping[str, object], public_port: int = 443,
                servers: Mapping[str, Mapping[str, object]] | None = None) -> str:
    """Return tenants.php: one constant array, which OPcache keeps in shared memory whatever its size.

    It holds the tenants' database and Redis passwords: root and PHP alone may read it. ``servers`` has ``host``, ``port`` and
    ``tls`` of the database servers beyond the one in ``fleet``. Tenants with a Unix user of their own are not in it.
    """
    shared = (tenant for tenant in tenants if not tenant.uid)
    data = tenants_data(shared, secret, fleet, public_port, servers)
    # A line each: a difference shows which tenant it is about.
    lines = ["<?php", f"// {NOTE}", "return [", f"  'fleet' => {php(data['fleet'])},"]
    for key in ("hosts", "tenants"):
        lines += [f"  '{key}' => [", *(f"    {php(name)} => {php(value)}," for name, value in data[key].items()), "  ],"]
    return "\n".join([*lines, "];", ""])


def tenants_own(tenants: Iterable[Tenant], secret: str, fleet: Mapping[str, object], public_port: int = 443,
                servers: Mapping[str, Mapping[str, object]] | None = None) -> str:
    """Return tenants.own, for root alone: what tenants.php would say of the tenants with a Unix user of their own, as JSON.

    A script of each node makes a map for each of them of it, which its user alone can read.
    """
    data = tenants_data((tenant for tenant in tenants if tenant.uid), secret, fleet, public_port, servers)
    return json.dumps(data, indent=1) + "\n"


def tenants_data(tenants: Iterable[Tenant], secret: str, fleet: Mapping[str, object], public_port: int = 443,
                 servers: Mapping[str, Mapping[str, object]] | None = None) -> dict[str, dict]:
    """Return the content of tenants.php as data."""
    hosts: dict[str, str] = {}
    entries: dict[str, dict[str, object]] = {}
    for tenant in tenants:
        if not tenant.serves:
            continue
        hosts |= dict.fromkeys(tenant.hosts, tenant.name)
        entry: dict[str, object] = {
            "wwwroot": wwwroot(tenant, public_port),
            "state": tenant.state,
            "database": tenant.database,
            "database_user": tenant.database_user(),
            "database_password": _secrets.derive(secret, "db", tenant.name, tenant.generation),
            "redis_user": tenant.redis_user(),
            "redis_password": _secrets.derive(secret, "redis", tenant.name, tenant.generation),
        }
        if tenant.server != DEFAULT_SERVER:
            if tenant.server not in (servers or {}):
                known = ", ".join([DEFAULT_SERVER, *(servers or {})])
                raise TenantError(
                    f"moodle_tenants: tenant {tenant.name}: database: {tenant.server!r} is not allowed: the servers are {known};"
                    " tenants_database_servers says where they are"
                )
            server = servers[tenant.server]
            entry |= {
                "dbhost": str(server["host"]), "dbport": int(server.get("port") or 3306),
                "database_tls": uses_tls(tenant.server, server, bool(fleet.get("database_tls"))),
            }
        if tenant.uid:
            entry |= {"uid": tenant.uid, "unix_user": tenant.unix_user}
        entries[tenant.name] = entry
    return {"fleet": dict(fleet), "hosts": hosts, "tenants": entries}


def tenants_map(tenants: Iterable[Tenant]) -> str:
    """Return the lines of nginx's map from host name to tenant."""
    lines = [f"# {NOTE}"]
    lines += [f"{host} {tenant.name};" for tenant in tenants if tenant.serves for host in tenant.hosts]
    return "\n".join(lines) + "\n"
