# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Redis users of the tenants, over the plain protocol: no client library is needed on the node."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterable, Sequence

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants.definition import Tenant

# What Moodle and the recipe's session handler need, one by one: nothing that reads data of others or changes the server. SCAN
# shows names of keys, but Moodle needs it to end a site's sessions. CLIENT LIST shows who is connected, and a session's
# lock is free once its holder is not.
COMMANDS = (
    "-@all",
    *"+auth +echo +hello +ping +quit +reset +select +info +scan +client|id +client|list".split(),
    *"+multi +exec +discard +watch +unwatch +eval +evalsha".split(),
    *"+exists +type +del +unlink +expire +pexpire +expireat +pexpireat +persist +ttl +pttl".split(),
    *"+get +set +setex +psetex +setnx +getset +getdel +getex +mget +mset +append +strlen +incr +incrby +decr +decrby".split(),
    *"+hget +hset +hmget +hmset +hsetnx +hgetall +hdel +hexists +hkeys +hvals +hlen +hincrby +hscan +hstrlen".split(),
    *"+zadd +zrem +zcard +zcount +zscore +zrange +zrangebyscore +zremrangebyscore +zremrangebyrank".split(),
    *"+sadd +srem +smembers +sismember +scard +sscan".split(),
)


class RedisError(Exception):
    """Redis refused a command or cannot be reached."""


class Connection:
    """One connection; commands are sent together and answered in order."""

    def __init__(self, host: str, port: int, user: str, password: str, tls: bool = False, timeout: float = 10) -> None:
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout)
            if tls:
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=host)
        except OSError as exc:
            raise RedisError(f"cannot connect to Redis at {host}:{port}: {exc}") from exc
        self._stream = self._socket.makefile("rb")
        if password:
            self.call("AUTH", user or "default", password)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()
        self._socket.close()

    def call(self, *words: str) -> object:
        """Send one command and return its answer."""
        return self.pipeline([words])[0]

    def pipeline(self, commands: Sequence[Sequence[str]]) -> list:
        """Send many commands at once and return their answers; the first refusal is raised."""
        answers = self.answers(commands)
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    def answers(self, commands: Sequence[Sequence[str]]) -> list:
        """Send many commands at once and return their answers, refusals among them as errors."""
        packed = []
        for words in commands:
            packed.append(b"*%d\r\n" % len(words))
            for word in words:
                raw = word.encode("utf-8", "surrogateescape")
                packed.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
        try:
            self._socket.sendall(b"".join(packed))
            return [self._read() for words in commands]
        except OSError as exc:
            raise RedisError(f"Redis does not answer: {exc}") from exc

    def _read(self) -> object:
        line = self._stream.readline()
        if not line:
            raise RedisError("Redis closed the connection")
        sort, rest = line[:1], line[1:-2].decode()
        if sort == b"+":
            return rest
        if sort == b"-":
            return RedisError(rest)
        if sort == b":":
            return int(rest)
        if sort == b"$":
            if rest == "-1":
                return None
            return self._stream.read(int(rest) + 2)[:-2].decode("utf-8", "surrogateescape")
        if sort == b"*":
            return [self._read() for position in range(int(rest))]
        raise RedisError("Redis answered something that is not its protocol")


# Redis shows commands in a form of its own. So the list's checksum is kept in the user, as a pattern of a key that the
# other pattern covers anyway, and a user made with another list is recognised.
_MARK = hashlib.sha256(" ".join(COMMANDS).encode()).hexdigest()[:12]


def rule(tenant: Tenant, password: str) -> list[str]:
    """Return the rule of a tenant's user: its own keys, by its own password."""
    checksum = hashlib.sha256(password.encode()).hexdigest()
    return ["on", f"#{checksum}", f"~t:{tenant.name}:*", f"~t:{tenant.name}:acl-{_MARK}", *COMMANDS]


def _normal(words: Iterable[str]) -> tuple[str, ...]:
    """Return what can be compared of a rule: whether the user is on, its passwords, keys and channels."""
    return tuple(sorted(word for word in words if word in ("on", "off", "nopass") or word[0] in "#~&%("))


def observe(connection: Connection) -> dict[str, tuple[str, ...]]:
    """Return the tenants' users and their rules."""
    users = {}
    for line in connection.call("ACL", "LIST"):
        words = line.split()
        if words[1].startswith("t:"):
            users[words[1]] = _normal(words[2:])
    return users


def differences(
    observed: dict[str, tuple[str, ...]], tenants: Iterable[Tenant], passwords: dict[str, str], prune: bool
) -> dict[str, list[tuple[str, ...]]]:
    """Return the commands each tenant needs; nothing for those that are as they should be."""
    wanted: dict[str, list[tuple[str, ...]]] = {}
    for tenant in tenants:
        user = tenant.redis_user()
        words = rule(tenant, passwords[tenant.name])
        commands = []
        if observed.get(user) != _normal(words):
            commands.append(("ACL", "SETUSER", user, "reset", *words))
        if prune:
            prefix = f"t:{tenant.name}:g"
            old = sorted(name for name in observed if name.startswith(prefix) and name != user)
            commands.extend(("ACL", "DELUSER", name) for name in old)
        if commands:
            wanted[tenant.name] = commands
    return wanted


def forget(connection: Connection, tenants: Iterable[str], sessions: bool = True) -> int:
    """Remove the keys of these tenants, in one pass over the server's keys; returns how many there were."""
    wanted = set(tenants)
    cursor, count = "0", 0
    while wanted:
        cursor, keys = connection.call("SCAN", cursor, "MATCH", "t:*", "COUNT", "1000")
        gone = [key for key in keys if key.split(":", 2)[1] in wanted and (sessions or not key.split(":", 3)[2] == "s")]
        if gone:
            count += int(connection.call("UNLINK", *gone))
        if cursor == "0":
            break
    return count


def save(connection: Connection) -> None:
    """Make the users survive a restart of the server."""
    try:
        connection.call("ACL", "SAVE")
    except RedisError as exc:
        if "ACL file" not in str(exc):
            raise
        connection.call("CONFIG", "REWRITE")
