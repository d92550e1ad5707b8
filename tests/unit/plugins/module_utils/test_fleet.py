# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import FleetFileError, load, validate

LOCAL = Path(__file__).parents[4] / "inventories" / "local" / "moodle_fleet.yml"
GOOD = {
    "plugin": "elearning.moodle_fleet.fleet",
    "fleet": "test",
    "cloud": {"driver": "podman"},
    "scaling": {"min_nodes": 2, "max_nodes": 4},
}


def changed(path: str, value: object) -> dict:
    """The good file with one key set."""
    values = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = values
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return values


def test_the_local_fleet_file_is_valid() -> None:
    fleet = load(LOCAL)
    assert fleet.name == "local"
    assert fleet.cloud["base_image"].startswith("localhost/")
    assert fleet.services["balancer"]["count"] == 1


def test_defaults_are_filled_in() -> None:
    fleet = validate(GOOD, "/etc/x/moodle_fleet.yml")
    assert fleet.services["database"]["count"] == 1
    assert fleet.services["files"] == {}
    assert fleet.balancer["driver"] == "haproxy"
    assert fleet.state_dir.parts[-2:] == ("moodle-fleet", "test")


def test_a_relative_state_dir_is_beside_the_fleet_file() -> None:
    assert validate(changed("state_dir", "state"), "/etc/x/moodle_fleet.yml").state_dir == Path("/etc/x/state")


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("flet", "x", "did you mean 'fleet'?"),
        ("fleet", "Bad Name", "must match"),
        ("cloud.driver", "gcp", "use one of: podman"),
        ("cloud.zone", ["a"], "did you mean 'zones'?"),
        ("cloud.subnet", "10.0.0.1/8", "write a private network"),
        ("cloud.subnet", "10.0.0.0/30", "at least 16 addresses"),
        ("cloud.zones", "a", "must be a list"),
        ("balancer.driver", "nginx", "use one of: haproxy"),
        ("services.database.count", "two", "must be a whole number"),
        ("services.database.count", True, "must be a whole number"),
        ("services.database.endpoint", "db.example.org", "host:port"),
        ("services.balancer.endpoint", "lb:1", "unknown key"),
        ("services.web.cpus", 0, "at least 0.05"),
        ("scaling.min_nodes", 9, "max"),
        ("scaling.min_nods", 2, "min_nodes"),
        ("scaling.max_nodes", "many", "whole number"),
        ("management_networks", ["10.0.0.1/8"], "write a network"),
        ("ledger", "mariadb", "must be a mapping"),
        ("ledger.driver", "postgresql", "use one of: sqlite, mariadb"),
        ("ledger.enpoint", "db:3306", "did you mean 'endpoint'?"),
        ("ledger.endpoint", "db.example.org", "host:port"),
        ("ledger.database", "Fleet-Ledger", "must match"),
        ("ledger.tls", "yes", "must be true or false"),
        ("ledger.user", "somebody", "needs driver: mariadb"),
    ],
)
def test_a_mistake_is_named_with_file_key_value_and_remedy(key: str, value: object, remedy: str) -> None:
    with pytest.raises(FleetFileError) as caught:
        validate(changed(key, value), "/etc/x/moodle_fleet.yml")
    message = str(caught.value)
    assert message.startswith("/etc/x/moodle_fleet.yml: ")
    assert key in message
    assert remedy in message
    shown = value[0] if key == "management_networks" else value
    assert repr(shown) in message


def test_overlapping_thresholds_are_refused() -> None:
    values = changed("scaling.scale_out_above", 0.5)
    values["scaling"]["scale_in_below"] = 0.6
    with pytest.raises(FleetFileError, match="scale_in_below"):
        validate(values, "f")


def test_all_mistakes_are_named_at_once() -> None:
    values = {**GOOD, "flet": 1, "services": {"jobs": {"count": -1}}}
    with pytest.raises(FleetFileError) as caught:
        validate(values, "f")
    assert {problem.key for problem in caught.value.problems} == {"flet", "services.jobs.count"}


DATABASE = {"endpoint": "db.example.org:3307", "tls": True}


@pytest.mark.parametrize(
    ("section", "database", "expected"),
    [
        ({}, DATABASE, ("db.example.org:3307", True, "fleet_ledger")),
        ({"tls": False}, DATABASE, ("db.example.org:3307", False, "fleet_ledger")),
        ({"endpoint": "10.0.0.9:3306"}, DATABASE, ("10.0.0.9:3306", False, "fleet_ledger")),
        ({"endpoint": "10.0.0.9:3306", "tls": True, "user": "checker"}, {"count": 1}, ("10.0.0.9:3306", True, "checker")),
    ],
)
def test_a_ledger_in_mariadb_is_beside_the_tenants_unless_told_otherwise(
    section: dict[str, object], database: dict[str, object], expected: tuple[str, bool, str]
) -> None:
    values = {**GOOD, "services": {"database": database}, "ledger": {"driver": "mariadb", **section}}
    ledger = validate(values, "/etc/x/moodle_fleet.yml").ledger
    assert (ledger["endpoint"], ledger["tls"], ledger["user"]) == expected


def test_a_ledger_in_mariadb_needs_a_server() -> None:
    with pytest.raises(FleetFileError, match="ledger.endpoint: None: is missing: give host:port of the database"):
        validate({**GOOD, "ledger": {"driver": "mariadb"}}, "/etc/x/moodle_fleet.yml")
    assert validate(GOOD, "/etc/x/moodle_fleet.yml").ledger["driver"] == "sqlite"


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "plugin: other\n"])
def test_unusable_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "moodle_fleet.yml"
    path.write_text(text)
    with pytest.raises(FleetFileError, match=str(path)):
        load(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FleetFileError, match="can't be read: No such file"):
        load(tmp_path / "moodle_fleet.yml")


def test_what_is_valid_yaml_for_people_loads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "moodle_fleet.yml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load(path).scaling["max_nodes"] == 4


AWS = {
    "driver": "aws", "network": "10.20.0.0/16", "zones": {"eu-central-1a": "subnet-0a1b"}, "base_image": "ami-0123",
}
ARN = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:"
ALB = {
    "driver": "alb", "target_group": f"{ARN}targetgroup/web/0a1b2c", "load_balancer": f"{ARN}loadbalancer/app/fleet/0a1b2c",
}


def test_a_fleet_on_aws_is_valid() -> None:
    fleet = validate({**GOOD, "cloud": AWS, "balancer": ALB}, "/etc/x/moodle_fleet.yml")
    assert fleet.cloud["spot_share"] == 0.0 and fleet.cloud["root_device"] == "/dev/xvda"
    # The balancer is no node.
    assert fleet.services["balancer"]["count"] == 0


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("cloud.network", "10.20.0.1/16", "write the network of the VPC"),
        ("cloud.zones", {}, "give each zone its subnet"),
        ("cloud.zones", {"eu-central-1a": "10.0.0.0/24"}, "give each zone its subnet"),
        ("cloud.base_image", "debian", "must match ami-"),
        ("cloud.instance_types", ["large"], "must match"),
        ("cloud.role_instance_types", {"king": ["m7i.large"]}, "'king' is no role"),
        ("cloud.role_instance_types", {"web": "m7i.large"}, "give 'web' a list of instance types"),
        ("cloud.security_groups", {"web": ["default"]}, "give 'web' a list of security groups"),
        ("cloud.security_groups", {"king": ["sg-01"]}, "'king' is no role"),
        ("cloud.spot_share", 1.5, "use at most 1"),
        ("cloud.subnet", "subnet-1", "unknown key"),
        ("balancer.target_group", "web", "must match"),
        ("services.balancer", {"count": 2}, "with an ALB there are no balancer nodes"),
    ],
)
def test_mistakes_in_a_fleet_on_aws(key: str, value: object, remedy: str) -> None:
    values = copy.deepcopy({**GOOD, "cloud": AWS, "balancer": ALB})
    place = values
    *parents, last = key.split(".")
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    with pytest.raises(FleetFileError) as caught:
        validate(values, "/etc/x/moodle_fleet.yml")
    assert key in str(caught.value) and remedy in str(caught.value)


def test_an_alb_serves_no_containers() -> None:
    with pytest.raises(FleetFileError, match="balancer.driver: 'alb': needs cloud.driver: aws"):
        validate({**GOOD, "balancer": ALB}, "/etc/x/moodle_fleet.yml")
