# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Driver ``aws``: baked images, and the launch templates that name them."""

from __future__ import annotations

import calendar
import json
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._aws import (
    TAG,
    Aws,
    doing,
    error_code,
    pairs,
    tag_list,
)
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import aws_parts as parts
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import ssh
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._scaling.types import Node

if TYPE_CHECKING:
    from ansible_collections.elearning.moodle_fleet.plugins.module_utils._fleet import Fleet

# An orphaned snapshot of a bake that was interrupted is removed when it is older than this.
SNAPSHOT_SECONDS = 3600


class Images:
    """The images and launch templates of one fleet."""

    def __init__(self, fleet: Fleet, aws: Aws):
        self.name = fleet.name
        self.state = fleet.state_dir
        self.settings = fleet.cloud
        self.aws = aws

    @property
    def _ec2(self) -> Any:
        return self.aws.client("ec2")

    def bake(self, builder: Node, release: str, recipe: str) -> str:
        """Make an image of a builder, wait for it, make the launch template's version of it; returns its id."""
        tags = {
            "Name": f"{self.name}-web", TAG: self.name, f"{TAG}:baked": "web", f"{TAG}:release": release,
            f"{TAG}:recipe": recipe,
        }
        # The builder's id makes the name unique, and a repeated bake of it finds what the first began.
        title = re.sub(r"[^A-Za-z0-9()\[\] ./'@_-]", "-", f"{self.name}-web-{release}-{recipe}-{builder.id[2:10]}")
        with doing(f"make an image of {builder.name}", CloudError):
            try:
                image = self._ec2.create_image(
                    InstanceId=builder.id, Name=title[:128], TagSpecifications=[
                        {"ResourceType": kind, "Tags": tag_list(tags)} for kind in ("image", "snapshot")
                    ],
                )["ImageId"]
            except Exception as exc:
                if error_code(exc) != "InvalidAMIName.Duplicate":
                    raise
                named = [{"Name": "name", "Values": [title[:128]]}]
                image = self._ec2.describe_images(Owners=["self"], Filters=named)["Images"][0]["ImageId"]
            self._ec2.get_waiter("image_available").wait(
                ImageIds=[image], WaiterConfig={"Delay": 5, "MaxAttempts": 360}
            )
            self.template("web", str(image))
        return str(image)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove images of this fleet with their snapshots and versions; those already gone count as removed."""
        known = self.images(every=True)
        going = [one for one in known if one["id"] in set(ids)]
        with doing("remove images", CloudError):
            for one in going:
                self._ec2.deregister_image(ImageId=one["id"])
            kept = {snapshot for one in known if one not in going for snapshot in one["snapshots"]}
            self._remove_snapshots(kept, {snapshot for one in going for snapshot in one["snapshots"]})
            self._remove_versions({one["id"] for one in going})

    def remove_templates(self) -> None:
        """Remove the fleet's launch templates."""
        with doing("remove the launch templates", CloudError):
            for one in self._templates():
                self._ec2.delete_launch_template(LaunchTemplateId=one)

    def template(self, role: str, image: str) -> tuple[str, str]:
        """Id and version of the launch template for one role and image; made where it does not exist yet."""
        data = parts.template_data(self.settings, role, image)
        mark = parts.fingerprint(data)
        path = self.state / "templates.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if mark not in known:
            known[mark] = self._make_template(role, data, mark)
            ssh.write(path, json.dumps(known, sort_keys=True))
        return known[mark][0], known[mark][1]

    def _make_template(self, role: str, data: dict[str, Any], mark: str) -> list[str]:
        name = f"moodle-fleet-{self.name}-{role}"
        tags = tag_list({TAG: self.name, f"{TAG}:role": role})
        try:
            made = self._ec2.create_launch_template(
                LaunchTemplateName=name, VersionDescription=mark, LaunchTemplateData=data, ClientToken=mark,
                TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
            )["LaunchTemplate"]
            return [str(made["LaunchTemplateId"]), str(made["LatestVersionNumber"])]
        except Exception as exc:
            if error_code(exc) != "InvalidLaunchTemplateName.AlreadyExistsException":
                raise
        pages = self._ec2.get_paginator("describe_launch_template_versions").paginate(LaunchTemplateName=name)
        versions = list(pages.search("LaunchTemplateVersions[].[LaunchTemplateId, to_string(VersionNumber), VersionDescription]"))
        found = next((one for one in versions if one[2] == mark), None)
        if found is None:
            made = self._ec2.create_launch_template_version(
                LaunchTemplateName=name, VersionDescription=mark, LaunchTemplateData=data, ClientToken=mark
            )["LaunchTemplateVersion"]
            found = [made["LaunchTemplateId"], str(made["VersionNumber"])]
        return [str(found[0]), str(found[1])]

    def _templates(self) -> list[str]:
        pages = self._ec2.get_paginator("describe_launch_templates").paginate(
            Filters=[{"Name": f"tag:{TAG}", "Values": [self.name]}]
        )
        return [str(one) for one in pages.search("LaunchTemplates[].LaunchTemplateId")]

    def images(self, every: bool = False) -> list[dict[str, Any]]:
        """Baked images, newest first; with ``every`` also those that are not ready."""
        with doing("list the images", CloudError):
            pages = self._ec2.get_paginator("describe_images").paginate(
                Owners=["self"], Filters=[{"Name": f"tag:{TAG}", "Values": [self.name]}]
            )
            found = list(pages.search(
                "Images[].{id: ImageId, created: CreationDate, tags: Tags, state: State, "
                "snapshots: BlockDeviceMappings[].Ebs.SnapshotId}"
            ))
        result = []
        for one in found:
            tags = pairs(one["tags"])
            if every or one["state"] == "available" and tags.get(f"{TAG}:baked"):
                result.append({
                    "id": str(one["id"]), "role": tags.get(f"{TAG}:baked", ""), "release": tags.get(f"{TAG}:release", ""),
                    "recipe": tags.get(f"{TAG}:recipe", ""), "created": _time(str(one["created"])),
                    "snapshots": one["snapshots"] or [],
                })
        return sorted(result, key=lambda one: -one["created"])

    def _remove_snapshots(self, kept: set[str], going: set[str]) -> None:
        """The snapshots of removed images, and those of images whose removal was interrupted."""
        pages = self._ec2.get_paginator("describe_snapshots").paginate(
            OwnerIds=["self"], Filters=[{"Name": f"tag:{TAG}", "Values": [self.name]}]
        )
        old = time.time() - SNAPSHOT_SECONDS
        found = {str(one): when.timestamp() for one, when in pages.search("Snapshots[].[SnapshotId, StartTime]")}
        for one in sorted(going | {name for name, when in found.items() if when < old and name not in kept}):
            try:
                self._ec2.delete_snapshot(SnapshotId=one)
            except Exception as exc:
                if error_code(exc) != "InvalidSnapshot.NotFound":
                    raise

    def _remove_versions(self, images: set[str]) -> None:
        """The launch template's versions of removed images. The default one stays: AWS wants one."""
        name = f"moodle-fleet-{self.name}-web"
        if not images or not self._templates():
            return
        pages = self._ec2.get_paginator("describe_launch_template_versions").paginate(LaunchTemplateName=name)
        try:
            versions = list(pages.search("LaunchTemplateVersions[?!DefaultVersion].[LaunchTemplateData.ImageId, to_string(VersionNumber)]"))
        except Exception as exc:
            if error_code(exc) in ("InvalidLaunchTemplateName.NotFoundException", "InvalidLaunchTemplateId.NotFound"):
                return
            raise
        going = [number for image, number in versions if image in images]
        if going:
            self._ec2.delete_launch_template_versions(LaunchTemplateName=name, Versions=going)


def _time(text: str) -> float:
    """Unix time of AWS's text."""
    return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))
