# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every driver needs to reach its nodes by ssh without trusting blindly."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError


def connection(address: str, alias: str, key: Path, known_hosts: Path) -> dict[str, Any]:
    """Ansible's variables for a node whose host key is in ``known_hosts`` under the name ``alias``."""
    options = {
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": alias,
        "StrictHostKeyChecking": "yes",
        "ServerAliveInterval": 10,
    }
    return {
        "ansible_host": address,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": " ".join(f"-o {name}={value}" for name, value in options.items()),
        "ansible_ssh_pipelining": True,
        "ansible_python_interpreter": "/usr/bin/python3",
    }


def greets(address: str) -> bool:
    """Whether an ssh server greets at this address now."""
    try:
        with socket.create_connection((address, 22), timeout=0.5) as link:
            link.settimeout(1)
            return link.recv(4) == b"SSH-"
    except OSError:
        return False


def run(variables: Mapping[str, Any], command: str, timeout: float) -> int:
    """Run a command on a node, reached by these variables of :func:`connection`; its exit code, 255 where ssh failed or time was up."""
    reach = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-i", variables["ansible_ssh_private_key_file"]]
    reach += [*shlex.split(variables["ansible_ssh_common_args"]), f"{variables['ansible_user']}@{variables['ansible_host']}", command]
    try:
        return subprocess.run(reach, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=max(1.0, timeout)).returncode
    except subprocess.TimeoutExpired:
        return 255


def unreachable(addresses: Mapping[str, str], timeout: float) -> list[str]:
    """Wait until these nodes (name: address, empty if it has none) greet; the names of those that did not in time."""
    deadline, waiting = time.monotonic() + timeout, dict(addresses)
    while True:
        waiting = {name: address for name, address in waiting.items() if not address or not greets(address)}
        if not any(waiting.values()) or time.monotonic() > deadline:
            return sorted(waiting)
        time.sleep(0.05)


def make_key(path: Path, comment: str) -> None:
    """Make an ed25519 key pair."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as exc:
        raise CloudError("ssh-keygen is not installed: apt-get install openssh-client") from exc


def write(path: Path, text: str) -> None:
    """Replace a file in one step, so that nobody reads half of it. Only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)
