#!/usr/bin/python
# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: image
version_added: "1.0.0"
short_description: Find or make the image that web nodes start from
description:
  - Tells whether a current image exists for a release and a recipe, and makes one of a builder node.
  - New web nodes start from the image that was found or made last, also where it is an older one. So to go back to a
    release is to ask for it again.
  - The recipe is told by a fingerprint of its folders and variables, so that a changed role makes the image out of date.
extends_documentation_fragment:
  - elearning.moodle_fleet.fleet_file
  - elearning.moodle_fleet.fleet_file.ledger
  - elearning.moodle_fleet.fleet_file.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  release:
    description: Release of Moodle's code that the image holds.
    type: str
    required: true
  recipe_paths:
    description: Folders and files that make the recipe.
    type: list
    elements: path
    default: []
  recipe_vars:
    description: Variables that make the recipe. Only a fingerprint of them is kept.
    type: dict
    default: {}
  builder:
    description: Node to make the image of. Without it nothing is changed.
    type: str
  keep:
    description: How many images to keep, the new one included. Older ones are removed when an image was made.
    type: int
    default: 3
author:
  - Moodle Fleet contributors (@moodle-fleet)
"""

EXAMPLES = r"""
- name: See whether a new image is due
  elearning.moodle_fleet.image:
    fleet_file: inventories/local/moodle_fleet.yml
    release: 4.5.6-1a2b3c4d
    recipe_paths: [roles/base, roles/php, roles/web]
  delegate_to: localhost
  register: image

- name: Make it of the builder
  elearning.moodle_fleet.image:
    fleet_file: inventories/local/moodle_fleet.yml
    release: 4.5.6-1a2b3c4d
    recipe_paths: [roles/base, roles/php, roles/web]
    builder: local-builder-1
  delegate_to: localhost
  when: not image.current
"""

RETURN = r"""
image:
  description: Id of the current image; empty when there is none.
  returned: always
  type: str
  sample: 3b1f
current:
  description: Whether an image of this release and recipe exists.
  returned: always
  type: bool
recipe:
  description: Fingerprint of the recipe.
  returned: always
  type: str
  sample: 9f86d081884c7d65
removed:
  description: Ids of images that were removed.
  returned: always
  type: list
  elements: str
"""

import hashlib
import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import FleetFileError, cloud_driver, load
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._kept import KeptError, choose_image, chosen_image
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._ledger import LedgerError


def fingerprint(paths: list[str], variables: dict) -> str:
    """A short hash of the content of files and folders, and of variables.

    :raises OSError: when a path does not exist or can't be read.
    """
    digest = hashlib.sha256(json.dumps(variables, sort_keys=True, default=str).encode())
    for path in map(Path, paths):
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            if "__pycache__" in file.parts or file.name == "README.md":
                continue
            name = file.relative_to(path.parent).as_posix()
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "fleet_file": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "recipe_paths": {"type": "list", "elements": "path", "default": []},
            "recipe_vars": {"type": "dict", "default": {}},
            "builder": {"type": "str"},
            "keep": {"type": "int", "default": 3},
            "ledger_password": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        recipe = fingerprint(params["recipe_paths"], params["recipe_vars"])
    except OSError as exc:
        module.fail_json(msg=f"recipe_paths: {exc.filename!r} can't be read ({exc.strerror}); name folders of the recipe")
    try:
        fleet = load(params["fleet_file"], params["ledger_password"])
        cloud = cloud_driver(fleet)
        images = cloud.images()
        matching = [image for image in images if (image["release"], image["recipe"]) == (params["release"], recipe)]
        result = {"changed": False, "recipe": recipe, "removed": [], "current": bool(matching)}
        result["image"] = matching[0]["id"] if matching else ""
        if params["builder"] and not matching:
            result.update(changed=True, diff={"before": "", "after": f"image of {params['release']}, recipe {recipe}\n"})
            if not module.check_mode:
                result["image"] = cloud.bake(params["builder"], params["release"], recipe)
                result["current"] = True
                # Nodes that run keep what they started from; only the template of new ones goes.
                result["removed"] = [image["id"] for image in images[max(params["keep"] - 1, 0):]]
                cloud.remove_images(result["removed"])
        chosen = chosen_image(fleet)
        if result["image"] and result["image"] != chosen:
            before = f"image {chosen}\n" if chosen else ""
            result.setdefault("diff", {"before": before, "after": f"image {result['image']}\n"})
            result["changed"] = True
            if not module.check_mode:
                choose_image(fleet, result["image"])
    except (FleetFileError, CloudError, KeptError, LedgerError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
