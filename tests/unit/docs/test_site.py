# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The documentation site: it is built without a warning, says what the sources say, and needs no network."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import build_site
import reference_pages as reference
from ansible_collections.elearning.moodle_fleet.plugins.module_utils import _fleet
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import policy_schema
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._schema import Field
from ansible_collections.elearning.moodle_fleet.trigger.cli import _parser

ROOT = Path(__file__).parents[3]
# MyST's own use of Sphinx is nothing that we could change.
pytestmark = pytest.mark.filterwarnings("ignore:'myst_parser")
FETCHED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//""")


def test_the_whole_site_is_built_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    assert build_site.build(tmp_path) == 0
    made = {page.relative_to(tmp_path).as_posix() for page in tmp_path.rglob("*.html")}
    wanted = {"index.html", "quick-start.html", "figures.html", "reference/fleet-file.html", "reference/command.html"}
    wanted |= {f"docs/{page.stem}.html" for page in (ROOT / "docs").glob("*.md")}
    wanted |= {f"reference/playbook_{book.stem}.html" for book in (ROOT / "playbooks").glob("*.yml")}
    wanted |= {f"reference/role_{role.name}.html" for role in (ROOT / "roles").iterdir()}
    for kind, folder in (("module", "modules"), ("filter", "filter"), ("inventory", "inventory")):
        wanted |= {f"reference/{kind}_{plugin.stem}.html" for plugin in (ROOT / "plugins" / folder).glob("*.py")}
    assert wanted - made == set()
    fetching = [page for page in made if FETCHED.search((tmp_path / page).read_text(encoding="utf-8"))]
    assert fetching == []


@pytest.mark.parametrize("link", ["missing.md", "index.md#no-such-heading", "missing.py"])
def test_a_link_that_leads_nowhere_fails(tmp_path: Path, link: str, capfd: pytest.CaptureFixture[str]) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "index.md").write_text(f"# Title\n\nSee [it]({link}).\n")
    assert build_site.render(stage, tmp_path / "out") != 0
    assert "index.md:3" in capfd.readouterr().err


def test_a_page_that_no_menu_leads_to_fails(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("# Title\n")
    (tmp_path / "orphan.md").write_text("# Nobody comes here\n")
    assert build_site.render(tmp_path, tmp_path / "out") != 0


@pytest.mark.parametrize(("origin", "name", "text", "expected"), [
    ("docs/aws.md", "docs/aws.md", "[a](scaling.md#the-plan)", "[a](scaling.md#the-plan)"),
    ("docs/x.md", "docs/x.md", "[a](../plugins/modules/node.py)", "[a](../reference/module_node.md)"),
    ("docs/x.md", "docs/x.md", "[a](../README.md#figures)", "[a](../figures.md)"),
    ("README.md", "quick-start.md", "[a](docs/aws.md) [b](https://example.org/x)", "[a](docs/aws.md) [b](https://example.org/x)"),
    ("roles/jobs/README.md", "reference/role_jobs.md", "[a](../../docs/jobs.md)", "[a](../docs/jobs.md)"),
    ("roles/jobs/README.md", "reference/role_jobs.md", "[a](meta/argument_specs.yml)", "[a](role_jobs.md)"),
])
def test_links_lead_to_the_sites_pages(tmp_path: Path, origin: str, name: str, text: str, expected: str) -> None:
    assert build_site.links(text, origin, name, tmp_path) == expected


def test_a_source_without_a_page_is_copied(tmp_path: Path) -> None:
    text = build_site.links("[plan](../plugins/module_utils/_releases/plan.py)", "docs/releases.md", "docs/releases.md", tmp_path)
    assert text == "[plan](../plugins/module_utils/_releases/plan.py)"
    copy = tmp_path / "plugins" / "module_utils" / "_releases" / "plan.py"
    assert copy.read_text() == (ROOT / copy.relative_to(tmp_path)).read_text()


def test_a_section_that_the_readme_lost_is_named() -> None:
    assert build_site.section("# A\n\n## One\n\ntext\n\n## Two\n", "One") == "## One\n\ntext\n\n"
    with pytest.raises(ValueError, match="no section 'Three'"):
        build_site.section("# A\n\n## One\n", "Three")


# -- the fleet file ---------------------------------------------------------------------------------------------------


def undescribed(prefix: str, fields: Mapping[str, Field]) -> Iterator[str]:
    for name, field in fields.items():
        if not field.help:
            yield f"{prefix}{name}"
        yield from undescribed(f"{prefix}{name}.", field.fields or {})
        yield from undescribed(f"{prefix}{name}[].", (field.items.fields if field.items else None) or {})


def test_every_key_of_the_fleet_file_has_a_meaning() -> None:
    # Ansible's own inventory options are Ansible's to describe.
    ansibles = {"cache", "cache_plugin", "cache_timeout", "cache_connection", "cache_prefix", "compose", "groups", "keyed_groups", "strict",
                "use_extra_vars", "leading_separator", "phases"}
    services = {f"services.{name}" for name in _fleet.SERVICES}
    assert set(undescribed("", _fleet.TOP)) - services == ansibles
    for section, drivers in (("cloud", _fleet.CLOUDS), ("balancer", _fleet.BALANCERS)):
        for name, driver in drivers.items():
            assert list(undescribed(f"{section} {name}: ", driver().SETTINGS)) == []


def test_the_fleet_files_page_has_every_key() -> None:
    page = reference.fleet_file()
    keys = [*_fleet.TOP, *policy_schema(), *(key for driver in (*_fleet.CLOUDS.values(), *_fleet.BALANCERS.values()) for key in driver().SETTINGS)]
    assert [key for key in keys if f"`{key}`" not in page] == []
    assert "| `stats_port` | whole number | `8404` | 1 to 65535 | port of HAProxy's counters |" in page
    assert "| `pool[].address` | text | required |  | its address |" in page
    assert "| `boot_seconds` | whole number | `300` | 5 to 3600 |" in page


# -- the rest of the reference ----------------------------------------------------------------------------------------


def test_the_commands_page_has_every_command_and_option() -> None:
    page = reference.command()
    subs = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, sub in subs.choices.items():
        part = page.partition(f"\n## moodle-fleet {name}\n")[2].partition("\n## ")[0]
        for action in sub._actions:
            if action.help != argparse.SUPPRESS and action.dest != "help":
                assert (action.option_strings or [str(action.metavar or action.dest)])[0] in part, (name, action.dest)
    assert "seconds that 95 % of the requests may wait for a worker (0.1)" in page


def test_a_playbooks_page_has_its_variables_and_roles() -> None:
    page = reference.playbook(ROOT / "playbooks" / "release.yml")
    assert "| `release_parallel` | tenants that are worked on at a time (2); at most Ansible's forks |" in page
    assert "[docs/releases.md](../docs/releases.md)" in page
    assert "[php](role_php.md)" in reference.playbook(ROOT / "playbooks" / "site.yml")


def test_ansibles_markup_becomes_markdown() -> None:
    assert reference.prose("M(elearning.moodle_fleet.node)") == r"[elearning\.moodle\_fleet\.node](module_node.md)"
    assert reference.prose("U(https://example.org/a)").endswith("](https://example.org/a)")
    rows = list(reference.option_rows({"a": {"type": "dict", "description": "One.", "suboptions": {
        "b": {"type": "int", "default": 0, "description": ["Two.", "Three."], "choices": [0, 1]}}}}))
    assert [row[:3] for row in rows] == [["`a`", "dict", ""], ["`a.b`", "int", "`0`"]]
    assert rows[1][3] == r"Two\. Three\. One of `0`, `1`."


def test_a_bar_in_a_table_is_no_column() -> None:
    assert reference.table(("a",), [["x|y"], ["z\\|w"]]) == "| a |\n| --- |\n| x\\|y |\n| z\\|w |\n"
    assert reference.table(("a",), []) == ""
