# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The action plugin of config_files: what it hands to the module."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.elearning.moodle_fleet.plugins.action.config_files import ActionModule
from ansible_collections.elearning.moodle_fleet.plugins.modules.config_files import decode


@pytest.fixture(name="act")
def fixture_act(tmp_path, monkeypatch):
    """Run the action with these files, and return the module's arguments and the contents in them."""
    for folder, name, text in (
        ("templates", "a.j2", "# {{ ansible_managed }}\n{% if yes %}\n{{ who }} {% include 'b.j2' %}\n{% endif %}\n"),
        ("templates", "b.j2", "-> {{ template_destpath }}"),
        ("templates", "broken.j2", "{{ undefined_variable }}"),
        ("files", "raw", "{{ not a template }}"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)

    def act(files, **variables):
        loader = DataLoader()
        loader.set_basedir(str(tmp_path))
        variables = {"ansible_search_path": [str(tmp_path)], **variables}
        task = MagicMock(args={"files": files, "no_diff": []}, check_mode=False, diff=False, async_val=0)
        task.get_search_path.return_value = [str(tmp_path)]
        action = ActionModule(
            task, MagicMock(), SimpleNamespace(), loader, Templar(loader=loader, variables=variables), MagicMock()
        )
        sent = {}

        def execute(name, module_args, task_vars):
            sent.update(module_args)
            return {"changed": True}

        monkeypatch.setattr(action, "_execute_module", execute)
        monkeypatch.setattr(action, "_remove_tmp_path", lambda path: None)
        assert action.run(task_vars=variables)["changed"] is True
        return sent, decode(sent["_contents"])

    return act


def test_sources_become_contents(act):
    sent, contents = act(
        [
            {"path": "/a", "template": "a.j2", "mode": "0600"},
            {"path": "/b", "content": "text"},
            {"path": "/c", "file": "raw"},
            {"path": "/d", "state": "directory"},
        ],
        yes=True,
        who="I",
    )
    assert contents[0].decode() == "# Managed by Ansible: changes made here will be overwritten.\nI -> /a\n"
    assert (contents[1], contents[2]) == (b"text", b"{{ not a template }}")
    assert sent["files"][0] == {"path": "/a", "mode": "0600"}
    assert 3 not in contents


def test_the_operators_ansible_managed_wins(act):
    contents = act([{"path": "/a", "template": "a.j2"}], yes=False, ansible_managed=trust_as_template("by {{ 'us' }}"))[1]
    assert contents[0] == b"# by us\n"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "/a"}, r"files\[0\] \(/a\): give exactly one of template, content and file, got none"),
        ({"path": "/a", "content": "x", "file": "y"}, "got content, file"),
        ({"path": "/a", "content": {"a": 1}}, "content must be text, got dict"),
        ({"path": "/a", "template": "missing.j2"}, "template 'missing.j2' was not found"),
        ({"path": "/a", "template": "broken.j2"}, r"\(/a\): template broken.j2 failed: .*undefined_variable"),
        ({"path": "/a", "state": "link", "content": "x"}, "remove the key content"),
        ("/a", "expected a dictionary"),
    ],
)
def test_wrong_entries_are_explained(act, entry, message):
    with pytest.raises(AnsibleActionFail, match=message):
        act([entry])


def test_files_must_be_a_list(act):
    with pytest.raises(AnsibleActionFail, match="expected a list"):
        act("/etc/hosts")
