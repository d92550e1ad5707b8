# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Render a list of files on the controller and hand all of them to one run of the module."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

SOURCES = ("template", "content", "file")


class ActionModule(ActionBase):
    """Replace template, content and file of every entry by the final bytes, then run the module."""

    def run(self, tmp=None, task_vars=None):
        task_vars = dict(task_vars or {})
        result = super().run(tmp, task_vars)
        del tmp

        args = dict(self._task.args)
        files = args.get("files")
        if not isinstance(files, Sequence) or isinstance(files, (str, bytes)):
            raise AnsibleActionFail("files: expected a list of entries, one for each path, got %s" % type(files).__name__)

        entries, contents = [], {}
        for index, entry in enumerate(files):
            where = "files[%d]" % index
            if not isinstance(entry, Mapping):
                raise AnsibleActionFail("%s: expected a dictionary with at least the key path, got %r" % (where, entry))
            entry = {key: value for key, value in entry.items() if value is not None}
            if entry.get("path"):
                where += " (%s)" % entry["path"]
            given = [key for key in SOURCES if key in entry]
            wanted = entry.get("state", "file") == "file"
            if wanted and len(given) != 1:
                raise AnsibleActionFail(
                    "%s: give exactly one of template, content and file, got %s" % (where, ", ".join(given) or "none")
                )
            if not wanted and given:
                raise AnsibleActionFail("%s: remove the key %s, it has no use with state %s" % (where, given[0], entry["state"]))
            if wanted:
                source = given[0]
                data = getattr(self, "_from_" + source)(where, entry.pop(source), entry.get("path"), task_vars)
                contents[str(index)] = base64.b64encode(data).decode()
            entries.append(entry)

        # The contents travel as one opaque value that the module never logs: they may hold secrets.
        args["files"] = entries
        args["_contents"] = base64.b64encode(zlib.compress(json.dumps(contents).encode(), 1)).decode()
        try:
            result.update(
                self._execute_module("elearning.moodle_fleet.config_files", module_args=args, task_vars=task_vars)
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _find(self, where: str, key: str, name: str) -> str:
        try:
            return self._find_needle({"template": "templates", "file": "files"}[key], name)
        except AnsibleError as exc:
            raise AnsibleActionFail("%s: %s %r was not found: %s" % (where, key, name, exc)) from exc

    def _from_content(self, where, content, dest, task_vars) -> bytes:
        if not isinstance(content, str):
            raise AnsibleActionFail(
                "%s: content must be text, got %s; turn data into text first, for example with the filter to_nice_json"
                % (where, type(content).__name__)
            )
        return content.encode()

    def _from_file(self, where, name, dest, task_vars) -> bytes:
        # get_real_file decrypts a vaulted file.
        with open(self._loader.get_real_file(self._find(where, "file", name)), "rb") as handle:
            return handle.read()

    def _from_template(self, where, name, dest, task_vars) -> bytes:
        source = self._find(where, "template", name)
        searchpath = []
        for folder in [*task_vars.get("ansible_search_path", []), self._loader.get_basedir(), os.path.dirname(source)]:
            searchpath += [os.path.join(folder, "templates"), folder]
        variables = {
            "ansible_managed": "Managed by Ansible: changes made here will be overwritten.",
            **task_vars,
            "template_path": name,
            "template_fullpath": source,
            "template_destpath": dest,
        }
        templar = self._templar.copy_with_new_env(searchpath=searchpath, available_variables=variables)
        try:
            # Trimmed like ansible.builtin.template does, so that templates can move between the two.
            text = templar.template(
                trust_as_template(self._loader.get_text_file_contents(source)),
                escape_backslashes=False,
                overrides={"trim_blocks": True, "lstrip_blocks": False},
            )
        except AnsibleError as exc:
            raise AnsibleActionFail("%s: template %s failed: %s" % (where, name, exc)) from exc
        return ("" if text is None else str(text)).encode()
