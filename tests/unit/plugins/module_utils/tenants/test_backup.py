# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os
import time

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import backup, site

SECRET = "s" * 40


class Restic:
    """Plays restic: keeps what it was asked, and answers from a script."""

    def __init__(self, snapshots=(), missing=False, error=""):
        self.snapshots = snapshots
        self.missing = missing
        self.error = error
        self.calls = []

    def __call__(self, command, **options):
        self.calls.append((command, options))
        if self.error:
            return 1, "", self.error
        if command[3] == "cat":
            missing = "Fatal: unable to open config file: stat: no such file\nIs there a repository at the following location?"
            return (1, "", missing) if self.missing else (0, "{}", "")
        if command[3] == "snapshots":
            return 0, json.dumps(list(self.snapshots)), ""
        return 0, "", ""


def store(restic):
    return backup.Store("/backups/", SECRET, restic, {"AWS_ACCESS_KEY_ID": "x"})


def at(hours):
    return {"id": "a", "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - hours * 3600)) + ".123456789Z"}


def test_a_password_is_no_argument_and_differs_between_tenants():
    restic = Restic()
    for tenant in ("acme", "globex"):
        store(restic).restic(tenant, "check")
    passwords = [options["environ_update"]["RESTIC_PASSWORD"] for command, options in restic.calls]
    assert len(set(passwords)) == 2
    assert not any(password in " ".join(command) for password in passwords for command, options in restic.calls)
    assert [command[2] for command, options in restic.calls] == ["/backups/acme", "/backups/globex"]


@pytest.mark.parametrize(
    ("restic", "why"),
    [
        (Restic([at(2)]), ""),
        (Restic([at(2), at(50)]), ""),
        (Restic([at(50)]), "its newest backup is 50 h old, and 24 h are allowed"),
        (Restic([]), "has no backup of it"),
        (Restic(missing=True), "has no backup of it"),
    ],
)
def test_only_a_fresh_backup_permits_a_removal(restic, why):
    said = backup.why_not_removed(store(restic), "acme", 24)
    assert why in said
    assert bool(said) == bool(why)
    assert not said or "name acme in tenants_remove" in said


def test_no_store_permits_no_removal():
    assert "does not say where backups are" in backup.why_not_removed(backup.Store("", SECRET, Restic()), "acme", 24)


def test_backups_that_cannot_be_read_are_an_error_and_not_an_absence():
    with pytest.raises(backup.BackupError, match="wrong password"):
        store(Restic(error="Fatal: wrong password or no key found")).snapshots("acme")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1970-01-02T00:00:00Z", 86400), ("1970-01-01T02:00:00.5+01:00", 3600), ("1969-12-31T23:30:00-01:00", 1800)],
)
def test_the_time_of_a_snapshot(text, seconds):
    assert backup.when({"time": text}) == seconds


@pytest.fixture(name="sites")
def make_sites(tmp_path):
    places = site.Places("/nowhere", str(tmp_path), "nobody", "/nowhere/cli.php", ["php"])
    places.account = lambda _tenant="": (os.getuid(), os.getgid())
    (tmp_path / "acme" / "data").mkdir(parents=True)
    return site.Sites(places, None)


def test_a_site_is_closed_and_opened_as_moodle_does(sites, tmp_path):
    sites.close("acme")
    page = tmp_path / "acme" / "data" / "climaintenance.html"
    assert sites.closed("acme") and "<h1>Maintenance</h1>" in page.read_text()
    (tmp_path / "acme" / "data" / "climaintenance.template.html").write_text("Our own page")
    sites.close("acme")
    assert page.read_text() == "Our own page"
    sites.open("acme")
    sites.open("acme")
    assert not sites.closed("acme")


def test_closing_a_site_follows_no_link(sites, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    data = tmp_path / "acme" / "data"
    (data / "climaintenance.html").symlink_to(victim)
    (data / ".climaintenance.new").symlink_to(victim)
    sites.close("acme")
    assert victim.read_text() == "untouched"
    assert not (data / "climaintenance.html").is_symlink()
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        sites.close("acme")


def test_a_script_that_fails_tells_no_password(sites):
    sites.run = lambda *words, **options: (1, "", "no such thing: hunter2hunter2")
    with pytest.raises(site.SiteError, match=r"install.php ended with 1: no such thing: \*{8}"):
        sites.script("acme", "install.php", "--adminpass=hunter2hunter2", hide=["hunter2hunter2"])
