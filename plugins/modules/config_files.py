#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Write a list of configuration files in one run
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Brings files, folders and links of a node into the wanted state, all of them in one run of the module. A role that
    configures a service needs one task for this, however many files it has.
  - Everything is checked before anything is written, the validation commands included. So a wrong entry leaves the
    node as it was.
  - Files are replaced atomically, with their owner and mode already set.
  - Contents are never logged, neither on the controller nor on the node.
options:
  _contents:
    description: Set by the action plugin, from the files and templates it has read. Leave it out.
    type: str
  files:
    description:
      - The entries, brought into their state in this order.
      - An entry with O(files[].state=file) needs exactly one of O(files[].template), O(files[].content) and
        O(files[].file).
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path on the node.
        type: path
        required: true
      state:
        description:
          - What the path shall be.
          - V(absent) removes a folder with everything in it.
        type: str
        choices: [file, directory, link, absent]
        default: file
      template:
        description: Name of a template, searched where M(ansible.builtin.template) searches.
        type: str
      content:
        description: The text itself.
        type: str
      file:
        description: Name of a file, searched where M(ansible.builtin.copy) searches. It is copied byte by byte.
        type: str
      target:
        description: Where the link points to. Needed with O(files[].state=link).
        type: str
      owner:
        description:
          - Name of the owner. What exists keeps its owner when this is not given.
          - In check mode an unknown owner is taken for one that a package would create.
        type: str
      group:
        description: Name of the group, the same as O(files[].owner) otherwise.
        type: str
      mode:
        description:
          - Permissions as a quoted number, for example V("0644"), or symbolic. What exists keeps its permissions when
            this is not given. A new file without it gets V("0644"), a new folder V("0755").
        type: raw
      validate:
        description:
          - A command that must succeed before the file is put in place. C(%s) stands for the path of the new content.
          - It is not run in check mode, since its program may not be installed yet.
        type: str
  no_diff:
    description: Paths whose contents are not shown in a diff.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
  diff_mode:
    description: Returns what changed, or would change, in each file.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: Configure Redis
  elearning.moodle_fleet.config_files:
    files:
      - {path: /etc/redis/redis.conf, template: redis.conf.j2, owner: redis, group: redis, mode: "0640"}
      - {path: /etc/redis/users.acl, template: users.acl.j2, owner: redis, group: redis, mode: "0600"}
      - {path: /srv/redis, state: directory, owner: redis, group: redis, mode: "0750"}
      - {path: /etc/redis/old.conf, state: absent}
    no_diff:
      - /etc/redis/users.acl
  notify: Restart Redis

- name: Let a service see its configuration only if it is valid
  elearning.moodle_fleet.config_files:
    files:
      - path: /etc/sudoers.d/deploy
        content: "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl reload nginx\n"
        mode: "0440"
        validate: visudo -cf %s
"""

RETURN = r"""
changed_paths:
  description: The paths that were changed, or would be in check mode.
  returned: always
  type: list
  elements: str
  sample: [/etc/redis/redis.conf]
"""

import base64
import binascii
import grp
import json
import os
import pwd
import shutil
import stat
import tempfile
import zlib

from ansible.module_utils.basic import AnsibleModule

DIFF_LIMIT = 100_000


def kind_of(path: str) -> str:
    """What is at this path, without following a link."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    for kind, test in (("link", stat.S_ISLNK), ("directory", stat.S_ISDIR), ("file", stat.S_ISREG)):
        if test(mode):
            return kind
    return "special file"


class ConfigFiles:
    """Checks all entries first, then applies them one by one."""

    def __init__(self, module: AnsibleModule, contents: dict[int, bytes]):
        self.module = module
        self.contents = contents
        self.no_diff = set(module.params["no_diff"])
        self.changed: list[str] = []
        self.diffs: list[dict] = []
        self.temps: dict[int, str] = {}

    def fail(self, index: int, entry: dict, message: str) -> None:
        self.module.fail_json(
            msg="files[%d] (%s): %s" % (index, entry["path"], message), changed_paths=self.changed, changed=bool(self.changed)
        )

    # -- checks ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        seen = set()
        for index, entry in enumerate(self.module.params["files"]):
            path = entry["path"]
            if not os.path.isabs(path) or os.path.normpath(path) != path.rstrip("/") or path == "/":
                self.fail(index, entry, "path must be absolute, without . and .. and not the root folder")
            entry["path"] = path = path.rstrip("/")
            if path in seen:
                self.fail(index, entry, "this path is named twice; keep one of the entries")
            seen.add(path)
            self.check_keys(index, entry)
            self.check_kind(index, entry)
            self.check_owner(index, entry)
            if entry["state"] == "file" and not self.module.check_mode:
                self.prepare(index, entry)

    def check_keys(self, index: int, entry: dict) -> None:
        state = entry["state"]
        if state == "file" and index not in self.contents:
            self.fail(index, entry, "there is no content; give one of template, content and file")
        if (state == "link") != bool(entry["target"]):
            self.fail(index, entry, "the key target belongs to state link, and state link needs it")
        if entry["mode"] is not None and not isinstance(entry["mode"], str):
            self.fail(index, entry, 'mode %r must be text; quote it, for example mode: "0644"' % (entry["mode"],))
        if entry["validate"] and (state != "file" or "%s" not in entry["validate"]):
            self.fail(index, entry, "validate needs state file and a %s where the path of the new content belongs")
        if state in ("link", "absent"):
            for key in ("owner", "group", "mode"):
                if entry[key] is not None:
                    self.fail(index, entry, "remove the key %s, it has no use with state %s" % (key, state))

    def check_kind(self, index: int, entry: dict) -> None:
        """Replacing one kind by another is an accident more often than it is meant."""
        kind, state = kind_of(entry["path"]), entry["state"]
        allowed = {
            "file": ("file", "link", "absent"),
            "directory": ("directory", "absent"),
            "link": ("link", "absent"),
            "absent": ("file", "link", "directory", "special file", "absent"),
        }[state]
        if state == "directory" and kind == "link" and os.path.isdir(entry["path"]):
            return
        if kind not in allowed:
            self.fail(index, entry, "there is a %s where a %s is wanted; remove it first, if that is right" % (kind, state))

    def check_owner(self, index: int, entry: dict) -> None:
        for key, lookup, what in (("owner", pwd.getpwnam, "user"), ("group", grp.getgrnam, "group")):
            name = entry[key]
            if name is None or name.isdigit():
                continue
            try:
                lookup(name)
            except KeyError:
                if not self.module.check_mode:
                    self.fail(index, entry, "%s: there is no %s %r on this node; install what creates it first" % (key, what, name))
                entry[key] = None  # the package that creates it is not installed in check mode

    def prepare(self, index: int, entry: dict) -> None:
        """Write the new content beside the node's files, where a validation command can look at it."""
        if kind_of(entry["path"]) == "file" and self.read(entry["path"]) == self.contents[index]:
            return
        handle, temp = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(handle, "wb") as out:
            out.write(self.contents[index])
        self.module.add_cleanup_file(temp)
        self.temps[index] = temp
        if entry["validate"]:
            rc, out, err = self.module.run_command(entry["validate"].replace("%s", temp))
            if rc != 0:
                self.fail(index, entry, "the command %r refused the new content: %s" % (entry["validate"], (err or out).strip()))

    # -- changes -----------------------------------------------------------------------------------------------

    def apply(self) -> None:
        for index, entry in enumerate(self.module.params["files"]):
            try:
                getattr(self, "apply_" + entry["state"])(index, entry)
            except OSError as exc:
                self.fail(index, entry, "%s failed: %s" % (entry["state"], exc))

    def note(self, entry: dict, before: object, after: object, suffix: str = "") -> None:
        path = entry["path"]
        if path not in self.changed:
            self.changed.append(path)
        if not self.module._diff:
            return
        if path in self.no_diff and not suffix:
            self.diffs.append({"prepared": "%s: the content changes, its diff is hidden\n" % path})
        else:
            header = path + suffix
            self.diffs.append({"before": before, "after": after, "before_header": header, "after_header": header})

    @staticmethod
    def read(path: str) -> bytes:
        with open(path, "rb") as handle:
            return handle.read()

    @staticmethod
    def shown(data: bytes) -> str:
        if len(data) > DIFF_LIMIT:
            return "(%d bytes, too long to be shown, CRC %08x)\n" % (len(data), binascii.crc32(data))
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "(%d bytes, not text, CRC %08x)\n" % (len(data), binascii.crc32(data))

    def attributes(self, entry: dict, new: bool = False) -> None:
        default_mode = {"file": "0644", "directory": "0755"}[entry["state"]] if new else None
        wanted = {
            "path": entry["path"],
            "owner": entry["owner"],
            "group": entry["group"],
            "mode": entry["mode"] or default_mode,
            "attributes": None,
            "secontext": [None, None, None],
        }
        diff: dict = {}
        changed = self.module.set_fs_attributes_if_different(wanted, False, diff=diff)
        if changed and not new:
            before, after = diff.get("before", {}), diff.get("after", {})
            before.pop("path", None)
            after.pop("path", None)
            self.note(entry, before, after, " (attributes)")

    def apply_file(self, index: int, entry: dict) -> None:
        path, data = entry["path"], self.contents[index]
        kind = kind_of(path)
        before = self.read(path) if kind == "file" else None
        if before == data:
            self.attributes(entry)
            return
        if kind == "link":
            shown = "link to %s\n" % os.readlink(path)
        else:
            shown = self.shown(before or b"")
        if self.module.check_mode:
            self.note(entry, shown, self.shown(data))
            if kind == "file":
                self.attributes(entry)
            return
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            self.fail(index, entry, "its folder %s is missing; add an entry with state directory before it" % folder)
        temp = self.temps[index]
        if kind == "file":
            # The new file takes over what is not asked for, so that nothing is ever open wider than before.
            old = os.stat(path)
            os.chown(temp, old.st_uid, old.st_gid)
            if entry["mode"] is None:
                os.chmod(temp, stat.S_IMODE(old.st_mode))
            self.module.set_fs_attributes_if_different(
                {"path": temp, "owner": entry["owner"], "group": entry["group"], "mode": entry["mode"], "attributes": None,
                 "secontext": [None, None, None]},
                False,
            )
        # A file that is new stays closed until its owner and mode are set just below.
        umask = os.umask(0o077)
        try:
            self.module.atomic_move(temp, path, keep_dest_attrs=False)
        finally:
            os.umask(umask)
        self.note(entry, shown, self.shown(data))
        self.attributes(entry, new=kind != "file")

    def apply_directory(self, index: int, entry: dict) -> None:
        path = entry["path"]
        if kind_of(path) == "absent":
            self.note(entry, {"state": "absent"}, {"state": "directory"})
            if self.module.check_mode:
                return
            umask = os.umask(0o022)
            try:
                os.makedirs(path)
            finally:
                os.umask(umask)
            self.attributes(entry, new=True)
            return
        self.attributes(entry)

    def apply_link(self, index: int, entry: dict) -> None:
        path, target = entry["path"], entry["target"]
        before = os.readlink(path) if kind_of(path) == "link" else ""
        if before == target:
            return
        self.note(entry, {"target": before}, {"target": target})
        if not self.module.check_mode:
            temp = "%s.%d.new" % (path, os.getpid())
            os.symlink(target, temp)
            os.replace(temp, path)

    def apply_absent(self, index: int, entry: dict) -> None:
        path, kind = entry["path"], kind_of(entry["path"])
        if kind == "absent":
            return
        self.note(entry, {"state": kind}, {"state": "absent"})
        if self.module.check_mode:
            return
        if kind == "directory":
            shutil.rmtree(path)
        else:
            os.unlink(path)


def decode(packed: str | None) -> dict[int, bytes]:
    """The contents as the action plugin packed them: index of the entry, bytes."""
    if not packed:
        return {}
    pairs = json.loads(zlib.decompress(base64.b64decode(packed)))
    return {int(index): base64.b64decode(data) for index, data in pairs.items()}


def main() -> None:
    entry = {
        "path": {"type": "path", "required": True},
        "state": {"type": "str", "choices": ["file", "directory", "link", "absent"], "default": "file"},
        "template": {"type": "str"},
        "content": {"type": "str"},
        "file": {"type": "str"},
        "target": {"type": "str"},
        "owner": {"type": "str"},
        "group": {"type": "str"},
        "mode": {"type": "raw"},
        "validate": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": entry},
            "no_diff": {"type": "list", "elements": "path", "default": []},
            "_contents": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    job = ConfigFiles(module, decode(module.params["_contents"]))
    job.check()
    job.apply()
    result = {"changed": bool(job.changed), "changed_paths": job.changed}
    if module._diff:
        result["diff"] = job.diffs
    module.exit_json(**result)


if __name__ == "__main__":
    main()
