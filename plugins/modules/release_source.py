#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: release_source
short_description: Make an artefact from Moodle's code
version_added: "1.0.0"
author: Moodle Fleet contributors (!UNKNOWN)
description:
  - Takes Moodle's code from a git repository, a tarball or a folder and makes one reproducible artefact of it, from
    which every node gets the same release. Run it on the controller.
  - The name of the release is Moodle's own version number and the first characters of the content's checksum, so that
    the same code always has the same name, and other code another one.
  - A second run with an unchanged source finds the artefact again without reading the code.
  - Left out are a C(config.php) at the top, and C(.git) and C(node_modules) wherever they are.
options:
  source:
    description:
      - URL of a git repository, path or URL of a tarball, or path of a folder. Plugins are part of the code.
      - A tarball behind a URL is downloaded once; it is taken to never change.
    type: str
    required: true
  version:
    description: Tag, branch or commit of the git repository. Without it, its default branch.
    type: str
    default: ''
  cache_dir:
    description: Folder that keeps the artefacts.
    type: path
    required: true
  timeout:
    description: Seconds to wait for a repository's or server's first answer.
    type: int
    default: 60
attributes:
  check_mode:
    description: Can run in check mode and return what would change.
    support: full
    details:
      - The name of a release follows from its content. So O(cache_dir) is filled in check mode too; nothing else changes.
  diff_mode:
    description: Returns details on what has changed.
    support: none
seealso:
  - module: elearning.moodle_fleet.release
"""

EXAMPLES = r"""
- name: Take Moodle from its repository
  elearning.moodle_fleet.release_source:
    source: https://github.com/moodle/moodle.git
    version: v4.5.6
    cache_dir: "{{ lookup('ansible.builtin.env', 'HOME') }}/.cache/moodle-fleet"
  delegate_to: localhost
  run_once: true
  register: source

- name: Show the name of the release
  ansible.builtin.debug:
    var: source.name
"""

RETURN = r"""
name:
  description: Name of the release.
  returned: success
  type: str
  sample: 4.5.6-1a2b3c4d
release:
  description: Moodle's version number.
  returned: success
  type: str
  sample: 4.5.6
version:
  description: The number by which Moodle orders versions.
  returned: success
  type: str
  sample: '2024100706.00'
branch:
  description: Moodle's branch.
  returned: success
  type: str
  sample: '405'
public_root:
  description: Whether the web root is the folder C(public) of the code, as from Moodle 5.1 on.
  returned: success
  type: bool
php:
  description: The PHP versions the code runs on; empty where it doesn't say.
  returned: success
  type: dict
  contains:
    minimum:
      description: The lowest version.
      type: str
      sample: 8.1.0
    below:
      description: The first version that is too new.
      type: str
      sample: '8.4'
artifact:
  description: Path of the artefact.
  returned: success
  type: str
digest:
  description: The artefact's checksum (SHA-256).
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._tenants import source


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "cache_dir": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    builder = source.Builder(module.params["cache_dir"], timeout=module.params["timeout"], report=module.log)
    try:
        found, made = builder.build(module.params["source"], module.params["version"])
    except source.SourceError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"Failed to make a release of {module.params['source']}: {exc}")
    module.exit_json(changed=made, **found)


if __name__ == "__main__":
    main()
