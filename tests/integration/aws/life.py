# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gives each instance of the test server a body: a systemd container that has its private address.

It starts from what its AMI stands for, a bare Debian or what was committed of a builder's container, and Debian's own
cloud-init reads the instance's user data in it. A terminated instance's container is removed at once, as if its plug was pulled.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import subprocess
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.podman import SHARED_FILES, mac_address

from .server import AwsServer

NAME = "moodle-fleet-aws-test"
BASE = "localhost/moodle-fleet/base:bookworm"
SEED = "/var/lib/cloud/seed/nocloud"
# A base image with cloud-init in the place of what the podman driver needs. Of cloud-init's modules those that look after
# disks, boot loaders and consoles are left out.
PREPARE = f"""
set -e
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends cloud-init > /dev/null
apt-get clean
rm /etc/ssh/sshd_config.d/fleet.conf
mkdir -p {SEED}
cat > /etc/cloud/cloud.cfg.d/90-test.cfg <<'CONF'
datasource_list: [NoCloud]
network: {{config: disabled}}
cloud_init_modules: [write-files, set_hostname, update_hostname, users-groups, ssh]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
CONF
truncate --size 0 /etc/machine-id
"""


def podman(*arguments: str, **more: Any) -> str:
    """What podman prints.

    :raises RuntimeError: with its complaint.
    """
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, timeout=300, **more)
    if done.returncode:
        raise RuntimeError(f"podman {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def debian() -> str:
    """The image of a bare Debian as clouds offer it; made where it does not exist."""
    image = f"localhost/moodle-fleet/base-cloud:{hashlib.sha256(PREPARE.encode()).hexdigest()[:8]}"
    if subprocess.run(["podman", "image", "exists", image], check=False).returncode:
        maker = f"{NAME}-maker"
        podman("run", "--detach", "--replace", "--name", maker, BASE, "sleep", "600")
        podman("exec", maker, "sh", "-c", PREPARE)
        podman("commit", "--quiet", "--change", 'CMD ["/sbin/init"]', maker, image)
        podman("rm", "--force", "--time", "0", maker)
    return image


class Life:
    """Watches the test server and lets containers live and die with its instances. ``network`` is that of the VPC."""

    def __init__(self, server: AwsServer, network: str, folder: Path):
        self.server = server
        self.network = network
        self.folder = folder
        # By instance: its address; by AMI: the podman image.
        self.addresses: dict[str, str] = {}
        self.images: dict[str, str] = {}
        self._started: dict[str, Future[None]] = {}
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Life:
        self._remove_all()
        podman("network", "create", "--subnet", self.network, NAME)
        podman("volume", "create", NAME)
        self._base = debian()
        # The network is there as long as somebody is on it; services of this machine listen on its first address.
        # AWS gives the first addresses to nobody.
        address = str(next(ipaddress.ip_network(self.network).hosts()) + 1)
        podman("run", "--detach", "--name", f"{NAME}-keeper", "--network", NAME, "--ip", address, BASE, "sleep", "infinity")
        self.server.on_image = self._commit
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._pool.shutdown()
        self._remove_all()
        for started in self._started.values():
            started.result()

    def _remove_all(self) -> None:
        """Everything of this run, and of one that was killed."""
        names = podman("ps", "--all", "--quiet", "--filter", f"name=^{NAME}-").split()
        if names:
            podman("rm", "--force", "--time", "0", "--volumes", *names)
        for image in podman("images", "--quiet", "--filter", f"reference=localhost/{NAME}-*").split():
            podman("rmi", "--force", image)
        podman("network", "rm", "--force", NAME)
        podman("volume", "rm", "--force", NAME)

    @staticmethod
    def container(instance: str) -> str:
        """Name of an instance's container."""
        return f"{NAME}-{instance}"

    def alive(self) -> set[str]:
        """The instances that have a running container."""
        names = podman("ps", "--filter", f"name=^{NAME}-i-", "--format", "{{.Names}}").split()
        return {name.removeprefix(f"{NAME}-") for name in names}

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            there = {one.id: one for one in self.server.instances()}
            for name in sorted(there.keys() - self._started.keys()):
                self._started[name] = self._pool.submit(self._start, there[name])
            for name in sorted(self._started.keys() - there.keys()):
                if self._started[name].done() and name in self.addresses:
                    del self.addresses[name]
                    podman("rm", "--force", "--time", "0", "--volumes", self.container(name))

    def _start(self, instance: Any) -> None:
        try:
            self._boot(instance)
        except Exception:
            # Whoever waits for the instance would only say that it never came.
            traceback.print_exc()
            raise

    def _boot(self, instance: Any) -> None:
        name = self.container(instance.id)
        seed = self.folder / instance.id
        seed.mkdir(parents=True)
        (seed / "user-data").write_bytes(base64.b64decode(str(instance.user_data)))
        address = str(instance.private_ip)
        # What the service at 169.254.169.254 says of it, as far as the user data asks.
        (seed / "meta-data").write_text(json.dumps({
            "instance-id": instance.id, "local-hostname": f"ip-{address.replace('.', '-')}",
            "ami-launch-index": str(instance.ami_launch_index),
        }))
        role = next((one["value"] for one in instance.get_tags() if one["key"] == "moodle_fleet:role"), "")
        options = [f"--network={NAME}", f"--ip={address}", f"--mac-address={mac_address(address)}", "--cap-add=SYS_ADMIN"]
        if role in ("web", "jobs"):
            # What a mounted EFS is there.
            options.append(f"--volume={NAME}:{SHARED_FILES}")
        image = self.images.get(instance.image_id, self._base)
        podman("create", "--systemd=always", f"--name={name}", *options, image, "/sbin/init")
        podman("cp", f"{seed}/.", f"{name}:{SEED}/")
        podman("start", name)
        self.addresses[instance.id] = address

    def _commit(self, instance: str, image: str) -> None:
        """An image is what was on the instance's disk; AWS shuts it down for that."""
        self.images[image] = f"localhost/{NAME}-{image}"
        podman("stop", "--time", "20", self.container(instance))
        podman("commit", "--quiet", self.container(instance), self.images[image])

    def kill(self, instance: str) -> None:
        """Take an instance away, as AWS does at the end of a notice."""
        self.server.ec2.terminate_instances([instance])
        deadline = time.monotonic() + 30
        while instance in self.addresses and time.monotonic() < deadline:
            time.sleep(0.1)
