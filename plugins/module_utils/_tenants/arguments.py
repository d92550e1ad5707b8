# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Arguments that the modules about tenants have in common, and what is made of them."""

from __future__ import annotations

import functools
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _secrets
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, backup, definition, dumps, resp, site

LIST = {
    "tenants": {"type": "list", "elements": "dict", "required": True},
    "database": {
        "type": "dict",
        "required": True,
        "options": {
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 3306},
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "user_host": {"type": "str", "default": "%"},
            "tls": {"type": "bool", "default": False},
        },
    },
    "servers": {"type": "dict", "default": {}, "no_log": True},
}
PLACES = {
    "code": {"type": "path", "default": "/srv/moodle/current"},
    "shared_root": {"type": "path", "default": "/srv/moodledata"},
    "owner": {"type": "str", "default": "www-data"},
}
TENANTS = {
    **LIST,
    "secret": {"type": "str", "required": True, "no_log": True},
    "cache": {
        "type": "dict",
        "required": True,
        "options": {
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 6379},
            "muc_host": {"type": "str"},
            "muc_port": {"type": "int"},
            "user": {"type": "str", "default": "default"},
            "password": {"type": "str", "default": "", "no_log": True},
            "tls": {"type": "bool", "default": False},
            "shared_user": {"type": "bool", "default": False},
        },
    },
    **PLACES,
    "cli": {"type": "path", "default": "/usr/lib/moodle-fleet/cli.php"},
    "php": {
        "type": "list",
        "elements": "str",
        "default": [
            "php", "-d", "max_input_vars=5000", "-d", "opcache.enable_cli=1", "-d",
            "opcache.file_cache=/var/cache/moodle-fleet/opcache-cli", "-d", "opcache.file_cache_only=1",
        ],
    },
    "public_port": {"type": "int", "default": 443},
}
BACKUP = {
    "store": {"type": "str", "default": ""},
    "environment": {"type": "dict", "default": {}, "no_log": True},
}


def database_servers(params: dict[str, Any]) -> dict[str, apply.DatabaseServer]:
    """Return the database servers by name."""
    listed = {definition.DEFAULT_SERVER: params["database"], **params["servers"]}
    servers = {}
    for name, one in listed.items():
        for key in ("host", "user", "password"):
            if not one.get(key):
                raise ValueError(f"servers.{name}.{key} is missing: give each server host, user and password")
        tls = definition.uses_tls(name, one, params["database"]["tls"])
        account = dumps.Account(str(one["host"]), int(one.get("port") or 3306), str(one["user"]), str(one["password"]), tls)
        servers[name] = apply.DatabaseServer(account, str(one.get("user_host") or params["database"]["user_host"]))
    return servers


def redis_places(cache: dict[str, Any]) -> list[functools.partial[resp.Connection]]:
    """Return what connects to each Redis."""
    sessions = (cache["host"], cache["port"])
    places = dict.fromkeys([sessions, (cache["muc_host"] or sessions[0], cache["muc_port"] or sessions[1])])
    user = "default" if cache["shared_user"] else cache["user"]
    return [functools.partial(resp.Connection, *place, user, cache["password"], cache["tls"]) for place in places]


def make_applier(module: Any) -> apply.Applier:
    """Return what brings tenants into being; a secret that is none is refused."""
    params = module.params
    _secrets.derive(params["secret"], "check", "secret")
    users = {tenant.name: tenant.uid for tenant in definition.load(params["tenants"]) if tenant.uid}
    places = site.Places(params["code"], params["shared_root"], params["owner"], params["cli"], params["php"], users)
    return apply.Applier(
        database_servers(params), redis_places(params["cache"]), site.Sites(places, module.run_command), params["secret"],
        shared_user=params["cache"]["shared_user"], public_port=params["public_port"], report=module.log,
    )


def make_store(module: Any) -> backup.Store:
    """Return where backups are."""
    params = module.params
    return backup.Store(params["store"], params["secret"], module.run_command, params["environment"])
