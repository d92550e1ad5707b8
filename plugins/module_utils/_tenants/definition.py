# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a tenant is: the operator's list, checked and completed. Pure; used on the controller and on nodes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ansible.module_utils.parsing.convert_bool import boolean

STATES = ("active", "maintenance", "suspended", "absent")
KEYS = ("name", "hosts", "title", "shortname", "admin", "state", "lang", "settings", "generation", "database",
        "own_user", "uid")
ADMIN_KEYS = ("user", "email")
# The server that the fleet's own settings name.
DEFAULT_SERVER = "default"
# moodle_fleet is the database in which the fleet keeps its book.
RESERVED = ("fleet",)
# Where the numbers of own Unix users lie: beyond those of people, services, containers and dynamic users (systemd's UIDS-GIDS.md).
# They have to be the same on every node, for files on the shared file system belong to them.
UIDS = range(1_900_000_000, 2_100_000_000)
# config.php says these for all tenants. Behind the balancer another value would break a site, or open it to others.
FORCED = frozenset(
    "admin cachedir dataroot dbhost dbname dbpass dbtype dbuser dirroot getremoteaddrconf localcachedir localrequestdir"
    " lock_factory overridetossl prefix reverseproxy reverseproxyignore session_handler_class siteidentifier sslproxy tempdir"
    " upgradekey wwwroot xsendfile".split()
)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_USER = re.compile(r"[a-z0-9._@-]{1,100}")
_LANG = re.compile(r"[a-z]{2,3}(_[a-z0-9_]+)?")
_SETTING = re.compile(r"([a-z][a-z0-9_]*/)?[a-zA-Z][a-zA-Z0-9_]*")


class TenantError(ValueError):
    """The list of tenants is wrong; the text names tenant, key, value and remedy."""


@dataclass(frozen=True)
class Tenant:
    """One Moodle site."""

    name: str
    hosts: tuple[str, ...]
    title: str
    shortname: str
    admin_user: str
    admin_email: str
    state: str = "active"
    lang: str = "en"
    generation: int = 1
    settings: Mapping[str, str | None] = field(default_factory=dict)
    server: str = DEFAULT_SERVER
    # Number of the Unix user that its PHP runs as; 0 where it shares the fleet's.
    uid: int = 0

    @property
    def unix_user(self) -> str:
        """Name of the Unix user of its own, or nothing."""
        return f"t-{self.name}" if self.uid else ""

    @property
    def database(self) -> str:
        """Name of the tenant's database."""
        return f"moodle_{self.name}"

    @property
    def serves(self) -> bool:
        """Whether nodes know the tenant at all."""
        return self.state != "absent"

    def database_user(self, generation: int | None = None) -> str:
        """Name of the tenant's database user; it carries the generation of its password."""
        return f"moodle_{self.name}_g{generation or self.generation}"

    def redis_user(self, generation: int | None = None) -> str:
        """Name of the tenant's Redis user; it carries the generation of its password."""
        return f"t:{self.name}:g{generation or self.generation}"


def uses_tls(name: str, server: Mapping[str, object], default: bool) -> bool:
    """Return whether a further database server is reached by TLS; one that doesn't say is like the first."""
    value = server.get("tls")
    if value is None:
        return default
    try:
        return boolean(value)
    except TypeError as exc:
        raise TenantError(f"tenants_database_servers: {name}.tls: {value!r} is not allowed: say true or false") from exc


def _fail(tenant: object, key: str, value: object, remedy: str) -> None:
    raise TenantError(f"moodle_tenants: tenant {tenant!s}: {key}: {value!r} is not allowed: {remedy}")


def _text(tenant: str, raw: Mapping, key: str, default: str | None = None) -> str:
    value = raw.get(key, default)
    if not isinstance(value, str) or not value.strip():
        _fail(tenant, key, value, "give a text that is not empty")
    if any(ord(char) < 32 for char in value):
        _fail(tenant, key, value, "leave out line breaks and control characters")
    return str(value)


def _host(tenant: str, value: object) -> str:
    if not isinstance(value, str):
        _fail(tenant, "hosts", value, "give host names as text")
    name = str(value)
    labels = name.split(".")
    if name != name.lower() or len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        _fail(tenant, "hosts", value, "give a host name in lower case, without scheme, port or path, such as physics.example.org")
    return name


def _setting(tenant: str, key: object, value: object) -> str | None:
    if not isinstance(key, str) or not _SETTING.fullmatch(key):
        _fail(tenant, "settings", key, "name a setting as 'name' or 'component/name', such as 'quiz/timelimit'")
    if key in FORCED or str(key).startswith("session_redis_"):
        _fail(tenant, f"settings.{key}", value, "leave it out: the fleet sets it, the same way for every tenant")
    if value is None:
        return None
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (int, float, str)):
        return str(value)
    _fail(tenant, f"settings.{key}", value, "give text, a number, true, false, or null to unset it")
    return None


def _uid(name: str, raw: Mapping) -> int:
    """Number of a tenant's own Unix user, 0 without one."""
    own, uid = raw.get("own_user", False), raw.get("uid")
    if not isinstance(own, bool):
        _fail(name, "own_user", own, "say true or false")
    if uid is not None and (isinstance(uid, bool) or not isinstance(uid, int) or not 1000 <= uid < 2**31 - 1):
        _fail(name, "uid", uid, "give a number from 1000 that no other user has on any node")
    if not own:
        return 0
    if len(name) > 30:
        _fail(name, "own_user", own, "its Unix user would be t- and the name, and Linux allows 32 characters: use a shorter name")
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return int(uid or UIDS[digest % len(UIDS)])


def _tenant(position: int, raw: object) -> Tenant:
    if not isinstance(raw, Mapping):
        _fail(f"number {position}", "tenant", raw, "give a mapping with name, hosts, title and admin")
    name = raw.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _fail(f"number {position}", "name", name, "use 1 to 31 of a-z, 0-9 and _, beginning with a letter")
    if name in RESERVED:
        _fail(name, "name", name, "use another name: the fleet keeps data of its own under this one")
    for key in raw:
        if key not in KEYS:
            _fail(name, str(key), raw[key], f"the known keys are {', '.join(KEYS)}")
    hosts = raw.get("hosts")
    if isinstance(hosts, str) or not isinstance(hosts, Sequence) or not hosts:
        _fail(name, "hosts", hosts, "give a list with at least one host name; the first is the site's address")
    admin = raw.get("admin")
    if not isinstance(admin, Mapping):
        _fail(name, "admin", admin, "give a mapping with user and email")
    for key in admin:
        if key not in ADMIN_KEYS:
            _fail(name, f"admin.{key}", admin[key], f"the known keys are {', '.join(ADMIN_KEYS)}")
    user = admin.get("user", "admin")
    if not isinstance(user, str) or not _USER.fullmatch(user) or user == "guest":
        _fail(name, "admin.user", user, "use lower case letters, digits and . _ @ -, and not 'guest'")
    email = admin.get("email")
    if not isinstance(email, str) or not _EMAIL.fullmatch(email):
        _fail(name, "admin.email", email, "give an e-mail address")
    state = raw.get("state", "active")
    if state not in STATES:
        _fail(name, "state", state, f"the states are {', '.join(STATES)}")
    lang = raw.get("lang", "en")
    if not isinstance(lang, str) or not _LANG.fullmatch(lang):
        _fail(name, "lang", lang, "give a Moodle language code, such as 'en' or 'de'")
    generation = raw.get("generation", 1)
    if isinstance(generation, bool) or not isinstance(generation, int) or generation < 1:
        _fail(name, "generation", generation, "give a whole number from 1; count it up to rotate the tenant's passwords")
    server = raw.get("database", DEFAULT_SERVER)
    if not isinstance(server, str) or not _NAME.fullmatch(server):
        _fail(name, "database", server, "give the name of a database server, a key of tenants_database_servers")
    settings = raw.get("settings") or {}
    if not isinstance(settings, Mapping):
        _fail(name, "settings", settings, "give a mapping of Moodle settings")
    return Tenant(
        name=str(name),
        hosts=tuple(_host(name, host) for host in hosts),
        title=_text(name, raw, "title"),
        shortname=_text(name, raw, "shortname", default=str(name)),
        admin_user=str(user),
        admin_email=str(email),
        state=str(state),
        lang=str(lang),
        generation=int(generation),
        settings={str(key): _setting(name, key, value) for key, value in settings.items()},
        server=str(server),
        uid=_uid(str(name), raw),
    )


def load(raw: Iterable[object]) -> list[Tenant]:
    """Check the operator's list and return its tenants in the given order."""
    if isinstance(raw, (str, Mapping)) or not isinstance(raw, Iterable):
        raise TenantError(f"moodle_tenants: {type(raw).__name__} is not allowed: give a list of tenants")
    tenants: list[Tenant] = []
    names: set[str] = set()
    owner: dict[str, str] = {}
    users: dict[int, str] = {}
    for position, entry in enumerate(raw, start=1):
        tenant = _tenant(position, entry)
        if tenant.name in names:
            _fail(tenant.name, "name", tenant.name, "each name may be used once")
        names.add(tenant.name)
        for host in tenant.hosts:
            if host in owner:
                _fail(tenant.name, "hosts", host, f"it already belongs to tenant {owner[host]}; a host name leads to one tenant")
            owner[host] = tenant.name
        if tenant.uid and users.setdefault(tenant.uid, tenant.name) != tenant.name:
            _fail(tenant.name, "uid", tenant.uid, f"tenant {users[tenant.uid]} has this number: give one of them another by uid")
        tenants.append(tenant)
    return tenants


def named(raw: Iterable[object], name: str) -> Tenant:
    """The tenant of that name.

    :raises ValueError: where the list is wrong, or the tenant is not in it or is to be absent.
    """
    tenant = next((tenant for tenant in load(raw) if tenant.name == name), None)
    if tenant is None or not tenant.serves:
        raise ValueError(f"name: {name!r} is not one of the tenants, or to be absent: list it first")
    return tenant
