# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The action plugin of packages: when it starts apt, and for what."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleActionFail

from ansible_collections.elearning.moodle_fleet.plugins.action.packages import ActionModule


@pytest.fixture(name="act")
def fixture_act(monkeypatch):
    """Run the action with these arguments on a server where dpkg answers this; returns its result and apt's arguments."""

    def act(arguments, answer=""):
        task = MagicMock(args=arguments, check_mode=False, diff=False, async_val=0)
        action = ActionModule(task, MagicMock(), SimpleNamespace(), MagicMock(), MagicMock(), MagicMock())
        asked = []

        def execute(name, module_args, task_vars):
            assert name == "ansible.builtin.apt"
            asked.append(module_args)
            return {"changed": True, "diff": {"prepared": "what apt says"}}

        monkeypatch.setattr(action, "_execute_module", execute)
        monkeypatch.setattr(action, "_low_level_execute_command", lambda command, sudoable: {"rc": 1, "stdout": answer})
        monkeypatch.setattr(action, "_remove_tmp_path", lambda path: None)
        return action.run(task_vars={}), asked

    return act


def test_apt_is_not_started_where_nothing_is_missing(act):
    result, asked = act({"name": ["nginx", "curl"]}, "curl installed\nnginx installed\n")
    assert (result["changed"], result["missing"], asked) == (False, [], [])


@pytest.mark.parametrize("state", ["config-files", "half-installed", "not-installed"])
def test_apt_is_started_for_what_is_missing(act, state):
    result, asked = act({"name": ["nginx", "curl", "jq"]}, f"curl installed\nnginx {state}\n")
    assert (result["changed"], result["missing"]) == (True, ["nginx", "jq"])
    assert [(one["name"], one["state"], one["install_recommends"]) for one in asked] == [(["nginx", "jq"], "present", False)]


def test_one_name_is_a_list_of_one(act):
    assert act({"name": "nginx"})[1][0]["name"] == ["nginx"]


@pytest.mark.parametrize("arguments", [{}, {"name": [1]}, {"name": "nginx", "state": "latest"}])
def test_anything_else_is_refused(act, arguments):
    with pytest.raises(AnsibleActionFail, match="packages takes one option"):
        act(arguments)
