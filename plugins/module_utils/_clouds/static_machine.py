# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is done at one server of one's own: switched on and off, taken into service, given back clean."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds import ssh
from ansible_collections.elearning.moodle_fleet.plugins.module_utils._clouds.base import CloudError

POWER_SECONDS = 60
# Wake-on-LAN is a datagram that may get lost, and one that comes while the machine still shuts down is in vain.
WAKE_AGAIN_SECONDS = 20
SCRIPT_SECONDS = 180
_TAKEN_BY_OTHERS = 66

# Arguments: owner (fleet/node), host name, yes|no: start what the machine was prepared with. Says "bare" where that is no
# longer there. By the file `owner` a machine that stands in two fleet files is never taken twice.
TAKE = r"""
set -eu
owner=$1 name=$2 start=$3 dir=/etc/moodle-fleet
[ "$(systemctl is-system-running || true)" != stopping ]
mkdir -p $dir
now=$(cat $dir/owner 2>/dev/null || true)
case $now in '' | "$owner") ;; *) echo "$now"; exit 66 ;; esac
if [ "$start" = yes ] && [ -z "$now" ] && ! [ -e $dir/parked ]; then echo bare; fi
printf '%s' "$owner" > $dir/owner
hostname "$name"
printf '%s\n' "$name" > /etc/hostname
[ -s /etc/machine-id ] || { systemd-machine-id-setup; systemctl restart systemd-journald; } >/dev/null 2>&1
if [ "$start" = yes ] && [ -e $dir/parked ]; then
  if findmnt -n --fstab /srv/moodledata >/dev/null && ! mountpoint -q /srv/moodledata; then mount /srv/moodledata; fi
  while read -r link target; do mkdir -p "${link%/*}"; ln -sfn "$target" "$link"; done < $dir/parked
  systemctl daemon-reload
  units=$(sed 's/ .*//; s,.*/,,' $dir/parked | sort -u)
  # Before what serves them: the tenants of today.
  case $units in *moodle-fleet-tenants.service*) systemctl start moodle-fleet-tenants.service ;; esac
  [ -z "$units" ] || systemctl start $units
fi
rm -f $dir/parked
"""

# Arguments: the owner that gives it back, the machine's own name. What served is stopped and stays so at the next boot
# (`parked` keeps the links for the next take); the tenants' secrets and pages go, also compiled ones.
RELEASE = r"""
set -eu
owner=$1 name=$2 dir=/etc/moodle-fleet parked=/etc/moodle-fleet/parked
[ "$(cat $dir/owner 2>/dev/null || true)" = "$owner" ] || exit 0
cd /etc/systemd/system
for link in *.wants/*.service; do
  printf '%s\n' "${link##*/}" | grep -qxE '(nginx|php[0-9.]*-fpm|haproxy|mariadb|redis-server@.*|rsyslog|moodle-fleet-.*)[.]service' || continue
  grep -qsF "$PWD/$link " $parked || printf '%s %s\n' "$PWD/$link" "$(readlink "$link")" >> $parked
done
touch $parked
while read -r link target; do rm -f "$link"; done < $parked
systemctl daemon-reload
units=$(sed 's/ .*//; s,.*/,,' $parked | sort -u)
[ -z "$units" ] || systemctl stop $units
cd $dir
rm -rf tenants tenants.php tenants.own tenants.map tenants.users tenants.fingerprint
if [ -d /var/cache/moodle-fleet ]; then
  # Folders of tenants with a Unix user of their own are nginx's to pass, by its group.
  find /var/cache/moodle-fleet -mindepth 1 -maxdepth 1 -type d -gid 1899999999 -exec rm -rf {} +
  find /var/cache/moodle-fleet -type f \( ! -path '*/opcache*/*' -o -path '*/etc/moodle-fleet/tenants*' \) -delete
fi
rm -rf /run/moodle-fleet/*
if findmnt -n --fstab /srv/moodledata >/dev/null && mountpoint -q /srv/moodledata; then umount /srv/moodledata; fi
hostname "$name"
printf '%s\n' "$name" > /etc/hostname
rm owner
"""


@dataclass(frozen=True)
class Machine:
    """A server of the pool. ``power_on`` and ``power_off`` are commands as lists; empty: it is switched on and off by nobody here."""

    name: str
    address: str
    connection: Mapping[str, Any]
    power_on: Sequence[str] = ()
    power_off: Sequence[str] = ()

    def take(self, owner: str, hostname: str, start: bool, former: str, timeout: float) -> bool:
        """Switch it on if need be and put it at the disposal of ``owner``. May be repeated.

        ``start``: start what it was prepared with; False is returned when that is gone. ``former``: an owner of whom it
        could not be cleaned.

        :raises CloudError: when it serves somebody else, or did not get ready within ``timeout`` seconds.
        """
        deadline, woken, trouble = time.monotonic() + timeout, 0.0, ""
        while True:
            if ssh.greets(self.address):
                if former:
                    self._run(RELEASE, former, self.name)
                code, said = self._run(TAKE, owner, hostname, "yes" if start else "no")
                if code == 0:
                    return said != "bare"
                if code == _TAKEN_BY_OTHERS:
                    raise CloudError(
                        f"Failed to take machine {self.name} ({self.address}): it says that it serves as {said}; if that is over, "
                        "remove /etc/moodle-fleet/owner there, else take it out of cloud.pool"
                    )
                trouble = f": {said}"
            elif self.power_on and (not woken or time.monotonic() - woken > WAKE_AGAIN_SECONDS):
                self._power("power_on", self.power_on)
                woken = time.monotonic()
            if time.monotonic() > deadline:
                more = "" if self.power_on else "; it has no power_on command, so it must be on"
                raise CloudError(
                    f"Failed to take machine {self.name} ({self.address}) within boot_seconds={timeout:g}{trouble}{more}; "
                    "look at its console, or take it out of cloud.pool"
                )
            time.sleep(0.5)

    def release(self, owner: str) -> bool:
        """Stop and remove what ``owner`` had here. False when the machine could not be reached or cleaned."""
        return ssh.greets(self.address) and self._run(RELEASE, owner, self.name)[0] == 0

    def switch_off(self) -> None:
        """Switch it off and see that it is.

        :raises CloudError: when it still answers a minute later.
        """
        if not self.power_off:
            return
        self._power("power_off", self.power_off)
        deadline = time.monotonic() + POWER_SECONDS
        while ssh.greets(self.address):
            if time.monotonic() > deadline:
                raise CloudError(f"Machine {self.name} still answers on ssh {POWER_SECONDS} s after its power_off command")
            time.sleep(0.5)

    def _power(self, what: str, command: Sequence[str]) -> None:
        try:
            done = subprocess.run(
                list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=POWER_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise CloudError(f"The {what} command of machine {self.name} failed: {exc}") from exc
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise CloudError(f"The {what} command of machine {self.name} ended with {done.returncode}: {said[-1]}")

    def _run(self, script: str, *arguments: str) -> tuple[int, str]:
        """Run a script there; its exit code (255: ssh's own) and the last line it said: on stderr where it failed."""
        command = [
            "ssh", "-i", self.connection["ansible_ssh_private_key_file"], *shlex.split(self.connection["ansible_ssh_common_args"]),
            "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", f"{self.connection['ansible_user']}@{self.address}",
            shlex.join(["sh", "-s", "--", *arguments]),
        ]
        try:
            done = subprocess.run(command, input=script, capture_output=True, text=True, check=False, timeout=SCRIPT_SECONDS)
        except FileNotFoundError as exc:
            raise CloudError("ssh is not installed: apt-get install openssh-client") from exc
        except subprocess.TimeoutExpired:
            return 255, f"no answer for {SCRIPT_SECONDS} s"
        said = done.stdout if done.returncode in (0, _TAKEN_BY_OTHERS) else done.stderr or f"exit code {done.returncode}"
        return done.returncode, (said.strip().splitlines() or [""])[-1]


__all__ = ["Machine"]
