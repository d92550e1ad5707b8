# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.policy import Policy, policy_schema, validate_policy


def test_defaults_are_valid_and_equal_to_the_schema() -> None:
    assert validate_policy({}) == []
    assert Policy.from_settings({}) == Policy()
    for key, setting in policy_schema().items():
        if setting.default is not None:
            assert getattr(Policy(), key) == setting.default


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"min_nodes": 7}, "min_nodes"),
        ({"max_nodes": 1}, "max_nodes"),
        ({"min_nodes": 0}, "min_nodes"),
        ({"min_nodes": True}, "min_nodes"),
        ({"min_nodes": 2.5}, "min_nodes"),
        ({"target": "half"}, "target"),
        ({"target": float("nan")}, "target"),
        ({"target": 1.5}, "target"),
        ({"dead_band": 0}, "dead_band"),
        ({"scale_in_below": 0.77}, "scale_in_below"),
        ({"scale_out_above": 0.6}, "scale_out_above"),
        ({"scale_out_above": 0.69, "scale_in_below": 0.2}, "target"),
        ({"max_node": 3}, "max_node"),
        ({"timezone": "Mars/Base"}, "timezone"),
        ({"forecast": "always"}, "forecast"),
        ({"forecast": True}, "forecast"),
        ({"trend": "auto"}, "trend"),
        ({"max_step_in": 0}, "max_step_in"),
        ({"max_step_in": "all"}, "max_step_in"),
        ({"max_step_out": "auto"}, "max_step_out"),
        ({"schedule": "07:30"}, "schedule"),
        ({"schedule": [{"nodes": 3, "from": "25:00", "until": "09:00"}]}, "schedule[0].from"),
        ({"schedule": [{"nodes": 3, "from": "07:00", "until": "07:00"}]}, "schedule[0].until"),
        ({"schedule": [{"nodes": 9, "from": "07:00", "until": "08:00"}]}, "schedule[0].nodes"),
        ({"schedule": [{"nodes": 3, "from": "07:00", "until": "08:00", "days": ["someday"]}]}, "schedule[0].days"),
        ({"schedule": [{"nodes": 3, "from": "2026-12-01 07:00", "until": "2026-11-01 08:00"}]}, "schedule[0].until"),
        ({"schedule": [{"nodes": 3, "from": "07:00", "until": "08:00", "colour": "red"}]}, "schedule[0].colour"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict, key: str) -> None:
    problems = validate_policy(settings)
    assert [problem[0] for problem in problems] == [key]
    assert problems[0][2]
    with pytest.raises(ValueError, match="remove|give|must|overlap|target|use one of"):
        Policy.from_settings(settings)


def test_thresholds_come_from_target_and_dead_band_or_are_given() -> None:
    derived = Policy.from_settings({"target": 0.5, "dead_band": 0.2})
    assert (derived.scale_out_above, derived.scale_in_below) == (0.6, 0.4)
    given = Policy.from_settings({"scale_out_above": 0.9, "scale_in_below": 0.3})
    assert (given.scale_out_above, given.scale_in_below) == (0.9, 0.3)


def test_several_problems_are_listed_together() -> None:
    assert len(validate_policy({"min_nodes": "two", "max": 1, "target": 9})) == 3


def test_an_unquoted_off_of_yaml_means_off() -> None:
    assert Policy.from_settings({"forecast": False, "trend": False}) == Policy(forecast="off", trend="off")
    assert Policy.from_settings({"forecast": "scale_out"}).forecast == "scale_out"


def test_steps_are_small_unless_the_policy_says_otherwise() -> None:
    policy = Policy.from_settings({})
    assert (policy.cooldown_between, Policy.from_settings({"cooldown_in": 10}).cooldown_between) == (60, 10)
    assert Policy.from_settings({"cooldown_in": 10, "cooldown_between": 20}).cooldown_between == 20
    assert (policy.max_step_out, policy.trend) == (3, "scale_out")
    assert [policy.step_in(size) for size in (0, 2, 7, 8, 20)] == [1, 1, 1, 2, 5]
    assert policy.draining(20) == 5
    single = Policy.from_settings({"max_step_in": 1, "max_draining": 1})
    assert [(single.step_in(size), single.draining(size)) for size in (0, 2, 8, 200)] == [(1, 1)] * 4
    mixed = Policy.from_settings({"max_step_in": 3, "max_draining": "auto"})
    assert (mixed.step_in(20), mixed.draining(20)) == (3, 3)
    assert Policy.from_settings({"max_step_in": "auto", "max_draining": 2}).draining(20) == 2
