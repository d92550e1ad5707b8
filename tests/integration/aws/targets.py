# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Targets of a target group as a load balancer keeps them: initial, healthy or not, draining, gone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .wire import Answer, Reader, error

if TYPE_CHECKING:
    from .server import AwsServer

_XML = "http://elasticloadbalancing.amazonaws.com/doc/2015-12-01/"


@dataclass
class Target:
    """One registered target; ``draining`` is when it was deregistered, 0 for never."""

    id: str
    port: int
    registered: float
    draining: float = 0.0


class Targets:
    """The targets of all target groups. ``probe`` says whether a target answers its health check."""

    def __init__(self, server: AwsServer):
        self.server = server
        self.groups: dict[str, dict[tuple[str, int], Target]] = {}
        self.initial_seconds = 0.0
        # Instead of the group's own deregistration delay.
        self.drain_seconds: float | None = None
        self.probe: Callable[[Target], bool] = lambda _target: True
        self.slow_start: dict[str, float] = {}

    def handler(self, request: Reader) -> Callable[..., Answer] | None:
        """What answers a call about targets, if it is one."""
        found = {
            "RegisterTargets": self._register, "DeregisterTargets": self._deregister,
            "DescribeTargetHealth": self._health,
        }
        return found.get(request.action) if request.service == "elasticloadbalancing" else None

    def state(self, arn: str, target: Target) -> tuple[str, str]:
        """State and reason, as DescribeTargetHealth names them; ``unused`` once it has drained."""
        now = time.time()
        if target.draining:
            over = now - target.draining >= self._delay(arn)
            return ("unused", "Target.NotRegistered") if over else ("draining", "Target.DeregistrationInProgress")
        if now - target.registered < self.initial_seconds:
            return "initial", "Elb.RegistrationInProgress"
        return ("healthy", "") if self.probe(target) else ("unhealthy", "Target.FailedHealthChecks")

    def current(self, arn: str) -> list[Target]:
        """The targets that are still known; instances that are gone leave by themselves."""
        gone = {one.id for one in self.server.instances("terminated", "shutting-down")}
        group = self.groups.get(arn, {})
        for key, target in list(group.items()):
            if target.id in gone or self.state(arn, target)[0] == "unused":
                del group[key]
        return [group[key] for key in sorted(group)]

    def _delay(self, arn: str) -> float:
        if self.drain_seconds is not None:
            return self.drain_seconds
        group = self._group(arn)
        return float(group.attributes.get("deregistration_delay.timeout_seconds", 300)) if group is not None else 300.0

    def _group(self, arn: str) -> Any:
        import moto.backends
        from moto.core import DEFAULT_ACCOUNT_ID

        region = arn.split(":")[3] if arn.count(":") > 3 else ""
        return moto.backends.get_backend("elbv2")[DEFAULT_ACCOUNT_ID][region].target_groups.get(arn)

    @staticmethod
    def _named(request: Reader) -> list[tuple[str, int]]:
        """The targets that a call names, with port 0 where it names none."""
        found: dict[str, dict[str, str]] = {}
        for key, value in request.parameters.items():
            part = re.fullmatch(r"Targets\.member\.(\d+)\.(\w+)", key)
            if part:
                found.setdefault(part.group(1), {})[part.group(2)] = value
        return [(one["Id"], int(one.get("Port", 0))) for one in found.values()]

    def _register(self, request: Reader, _environ: Any, _body: bytes) -> Answer:
        arn = request.parameters.get("TargetGroupArn", "")
        group = self._group(arn)
        if group is None:
            return error(request, "TargetGroupNotFound", 400)
        running = {one.id for one in self.server.instances("running", "pending")}
        for name, port in self._named(request):
            if name.startswith("i-") and name not in running:
                return error(request, "InvalidTarget", 400)
            key = (name, port or int(group.port or 80))
            known = self.groups.setdefault(arn, {}).get(key)
            if known is None or known.draining:
                self.groups[arn][key] = Target(*key, time.time())
        return _empty("RegisterTargets")

    def _deregister(self, request: Reader, _environ: Any, _body: bytes) -> Answer:
        arn = request.parameters.get("TargetGroupArn", "")
        if self._group(arn) is None:
            return error(request, "TargetGroupNotFound", 400)
        for name, port in self._named(request):
            for key, target in self.groups.get(arn, {}).items():
                if key[0] == name and port in (0, key[1]) and not target.draining:
                    target.draining = time.time()
        return _empty("DeregisterTargets")

    def _health(self, request: Reader, _environ: Any, _body: bytes) -> Answer:
        arn = request.parameters.get("TargetGroupArn", "")
        if self._group(arn) is None:
            return error(request, "TargetGroupNotFound", 400)
        rows = []
        for target in self.current(arn):
            state, reason = self.state(arn, target)
            why = f"<Reason>{reason}</Reason><Description>{reason}</Description>" if reason else ""
            rows.append(
                f"<member><Target><Id>{target.id}</Id><Port>{target.port}</Port></Target><HealthCheckPort>{target.port}"
                f"</HealthCheckPort><TargetHealth><State>{state}</State>{why}</TargetHealth></member>"
            )
        text = f"<TargetHealthDescriptions>{''.join(rows)}</TargetHealthDescriptions>"
        return _answer("DescribeTargetHealth", text)


def _empty(action: str) -> Answer:
    return _answer(action, "")


def _answer(action: str, text: str) -> Answer:
    body = f'<{action}Response xmlns="{_XML}"><{action}Result>{text}</{action}Result></{action}Response>'
    return Answer("200 OK", [("Content-Type", "text/xml")], body.encode())
