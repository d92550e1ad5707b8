# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask dpkg which packages are missing, and start apt only for those."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# apt-get update at most once a day.
CACHE_SECONDS = 86400


class ActionModule(ActionBase):
    """Installs what is missing by M(ansible.builtin.apt)."""

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        del tmp
        name = self._task.args.get("name")
        names = [name] if isinstance(name, str) else name
        if set(self._task.args) - {"name"} or not isinstance(names, Sequence) or not all(
            isinstance(one, str) and one for one in names
        ):
            raise AnsibleActionFail(f"packages takes one option, name: a package or a list of packages, not {self._task.args!r}")
        result.update(changed=False, missing=self._missing(list(names)))
        if not result["missing"]:
            return result
        try:
            installed = self._execute_module(
                "ansible.builtin.apt", task_vars=task_vars,
                module_args={
                    "name": result["missing"], "state": "present", "install_recommends": False, "update_cache": True,
                    "cache_valid_time": CACHE_SECONDS,
                },
            )
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return {**installed, "missing": result["missing"]}

    def _missing(self, names: list[str]) -> list[str]:
        if not names:
            return []
        query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\\n", "--", *names]
        # Names that dpkg has never heard of end it with an error, and are missing all the same.
        answer = self._low_level_execute_command(" ".join(shlex.quote(word) for word in query), sudoable=True)
        lines = (line.split() for line in answer.get("stdout", "").splitlines())
        installed = {words[0] for words in lines if words[1:] == ["installed"]}
        return [name for name in names if name not in installed]
