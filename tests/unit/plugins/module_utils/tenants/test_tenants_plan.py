# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a tenant needs, from what a server and Redis have."""
from __future__ import annotations

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import apply, database, definition, dumps, resp, site

TENANT = definition.load([{"name": "a_b", "hosts": ["a.example.org"], "title": "A", "admin": {"email": "a@b"}, "generation": 2}])[0]
USER = ("moodle_a_b_g2", "%")


def observed(**changes):
    found = database.Observed(
        databases={"moodle_a_b": "utf8mb4_unicode_ci"},
        users={USER: database.checksum("pw")},
        grants={(*USER, "moodle\\_a\\_b")},
        book={"a_b": database.Entry("installed", "r")},
        has_book=True,
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_nothing_to_do():
    assert database.statements(observed(), TENANT, "pw", "%", prune=True) == []


def test_rights_end_at_the_tenants_own_database():
    """An underscore in GRANT stands for any character: a_b must not reach the database of axb."""
    needed = database.statements(observed(grants={(*USER, "moodle_a_b")}), TENANT, "pw", "%", prune=False)
    assert [statement for statement, values in needed] == [f"GRANT {database.RIGHTS} ON `moodle\\_a\\_b`.* TO %s@%s"]


def test_a_changed_password_is_set():
    assert database.statements(observed(), TENANT, "new", "%", prune=False) == [
        ("ALTER USER %s@%s IDENTIFIED BY %s", (*USER, "new"))
    ]


def test_old_generations_stay_until_pruned():
    users = {USER: database.checksum("pw"), ("moodle_a_b_g1", "%"): "x", ("moodle_a_b_c_g1", "%"): "x", ("moodle_a_g1", "%"): "x"}
    assert database.statements(observed(users=users), TENANT, "pw", "%", prune=False) == []
    assert database.statements(observed(users=users), TENANT, "pw", "%", prune=True) == [
        ("DROP USER %s@%s", ("moodle_a_b_g1", "%"))
    ]


def test_redis_users_reach_their_own_keys_only():
    words = resp.rule(TENANT, "pw")
    assert [word for word in words if word[0] == "~"][0] == "~t:a_b:*"
    assert all(word.startswith("~t:a_b:") for word in words if word[0] == "~")
    assert words.index("-@all") < min(words.index(word) for word in words if word[0] == "+")
    assert not {"+flushall", "+keys", "+config", "+acl", "+@all", "+script", "+swapdb"} & set(words)


def test_redis_users_are_compared_whatever_form_their_commands_have():
    shown = resp._normal([*resp.rule(TENANT, "pw")[:4], "sanitize-payload", "resetchannels", "-@all", "+@hash", "-hscan"])
    assert resp.differences({"t:a_b:g2": shown}, [TENANT], {"a_b": "pw"}, prune=True) == {}
    assert "a_b" in resp.differences({"t:a_b:g2": shown}, [TENANT], {"a_b": "new"}, prune=True)
    assert resp.differences({"t:a_b:g2": shown, "t:a_b:g1": ()}, [TENANT], {"a_b": "pw"}, prune=True) == {
        "a_b": [("ACL", "DELUSER", "t:a_b:g1")]
    }


class Server:
    def __init__(self, content):
        self.content = content

    def finished(self, tenant):
        return self.content


def applier():
    servers = {"default": apply.DatabaseServer(dumps.Account("db", 3306, "admin", "pw"))}
    places = site.Places("/nowhere/release-1", "/nowhere/files", "nobody", "/nowhere/cli.php", ["php"])
    return apply.Applier(servers, [], site.Sites(places, None), "s" * 40)


def need(content, tenant=TENANT, **changes):
    found = observed(**changes)
    work = apply.Work(tenant, found.book.get("a_b", database.Entry()))
    return applier()._site(Server(content), found, work)


@pytest.mark.parametrize(
    ("content", "book", "needed"),
    [
        ("empty", {}, "install"),
        ("empty", {"a_b": database.Entry("installing")}, "install"),
        ("unfinished", {"a_b": database.Entry("installing")}, "again"),
        ("finished", {"a_b": database.Entry("installing")}, "adopt"),
        ("empty", {"a_b": database.Entry("cloning")}, "install"),
        ("finished", {"a_b": database.Entry("cloning")}, "again"),
        ("finished", {}, "adopt"),
    ],
)
def test_what_a_site_needs(content, book, needed):
    assert need(content, book=book) == needed


def test_a_database_we_did_not_begin_to_fill_is_never_dropped():
    with pytest.raises(database.DatabaseError, match="not from an installation"):
        need("unfinished", book={})


def test_a_lost_database_is_not_replaced_by_an_empty_site():
    with pytest.raises(database.DatabaseError, match="is gone: restore it"):
        need("empty", databases={})


def test_actions_hold_no_password():
    work = apply.Work(TENANT, sql=[("CREATE USER %s@%s IDENTIFIED BY %s", (*USER, "s3cret"))], site="install")
    assert work.actions() == ["create user", "install the site"]


@pytest.mark.parametrize("state", ["restoring", "removing"])
def test_what_was_broken_off_is_repeated_and_not_built_upon(state):
    with pytest.raises(database.DatabaseError, match="broken off: repeat"):
        need("finished", book={"a_b": database.Entry(state)})


def tenant(**changes):
    raw = {"name": "a_b", "hosts": ["a.example.org"], "title": "A", "admin": {"email": "a@b"}, "generation": 2}
    return definition.load([{**raw, **changes}])[0]


def planned(wanted, entry, closed=False, **changes):
    """The work for a tenant, from what the book says of it."""
    one = applier()
    one.sites.wrong_folders = lambda name: []
    one.sites.closed = lambda name: closed
    work = apply.Work(wanted, entry, entry.server)
    found = observed(book={"a_b": entry}, users={USER: database.checksum(one.password("db", wanted))}, **changes)
    one.servers["db2"] = one.servers["default"]
    one._plan(work, Server("finished"), found, prune=False)
    return work


HERE = database.Entry("installed", "r", "default", "https://a.example.org")


def test_a_site_as_it_should_be_needs_nothing():
    assert planned(tenant(), HERE).actions() == []


def test_a_new_first_host_replaces_the_address():
    work = planned(tenant(hosts=["new.example.org", "a.example.org"]), HERE)
    assert work.actions() == ["replace the address https://a.example.org by https://new.example.org"]


def test_another_server_moves_the_database():
    assert planned(tenant(database="db2"), HERE).actions() == ["move the database from default to db2"]


@pytest.mark.parametrize(
    ("state", "held", "closed", "actions"),
    [
        ("maintenance", "", False, ["maintenance on"]),
        ("maintenance", "list", True, []),
        ("active", "list", True, ["maintenance off"]),
        # Somebody else closed it, perhaps an upgrade.
        ("active", "", True, []),
        # Nodes may not know of its new place yet.
        ("active", "change", True, []),
        ("suspended", "", False, []),
    ],
)
def test_maintenance_follows_the_list_and_leaves_that_of_others_alone(state, held, closed, actions):
    assert planned(tenant(state=state), HERE._replace(held=held), closed).actions() == actions


@pytest.mark.parametrize(
    ("need", "entry", "done"),
    [
        (
            "install", database.Entry(),
            ["note installing", "jobs rest", "install_database.php", "purge_caches.php", "jobs run", "note installed"],
        ),
        # Broken off before its caches were emptied.
        ("adopt", database.Entry("installing"), ["purge_caches.php", "jobs run", "note installed"]),
        # Of an earlier version's book, or somebody else's: in use.
        ("adopt", database.Entry("installed"), ["note installed"]),
        ("adopt", database.Entry(), ["note installed"]),
    ],
)
def test_nothing_that_cron_kept_of_half_a_site_outlives_its_installation(need, entry, done):
    one, happened = applier(), []
    one.sites.script = lambda name, script, *words, hide=(): happened.append(script.rsplit("/", 1)[1])
    one.sites.lead_jobs = lambda name, release: happened.append({"": "jobs rest", None: "jobs run"}[release])

    class Book(Server):
        def note(self, name, **values):
            happened.append(f"note {values['state']}")

    one._bring_into_being(Book("empty"), Book("empty"), apply.Work(TENANT, entry, "default", site=need))
    assert happened == done


def test_an_absent_tenant_is_refused_without_a_backup():
    one = applier()
    one.may_remove = lambda wanted: "no backup"
    work = apply.Work(tenant(state="absent"), HERE)
    one._plan(work, Server("finished"), observed(), prune=False)
    assert (work.error, work.actions()) == ("no backup", [])
    work = apply.Work(tenant(state="absent"), HERE._replace(state="removing"))
    one._plan(work, Server("finished"), observed(), prune=False)
    assert (work.error, work.actions()) == ("", ["remove the site with everything in it"])


def test_an_absent_tenant_that_is_gone_needs_nothing():
    one = applier()
    work = apply.Work(tenant(state="absent"))
    one._plan(work, Server("finished"), database.Observed(), prune=False)
    assert (work.error, work.actions()) == ("", [])


@pytest.mark.parametrize("tls", [False, True])
def test_programs_verify_the_server_where_tls_is_asked_for(monkeypatch, tls):
    monkeypatch.setenv("SSL_CERT_FILE", __file__)
    with dumps._options(dumps.Account("db", 3306, "root", "pw", tls)) as path:
        with open(path, encoding="utf-8") as stream:
            words = stream.read().split("\n")
    assert ("ssl-verify-server-cert" in words) is tls
    assert (f"ssl-ca={__file__}" in words) is tls


def test_nobody_makes_users_in_a_cache_with_one_user():
    asked = []

    class Redis:
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def call(self, *words):
            asked.append(words)

    one = apply.Applier({}, [Redis, Redis], None, "s" * 40, shared_user=True)
    work = apply.Work(TENANT)
    one.plan_redis([work], prune=True)
    assert work.redis == [[], []] and asked == [("PING",), ("PING",)]
