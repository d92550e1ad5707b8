# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""AWS's API for the drivers: one session, standard retries, and errors that say what was tried and what to do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

# The tag by which everything of a fleet is known; further tags have it as prefix.
TAG = "moodle_fleet"
FINAL = frozenset({"InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity"})
# The standard mode waits up to 20 s between two attempts and respects a quota of its own.
ATTEMPTS = 6

_REMEDIES = {
    "UnauthorizedOperation": "allow this action in the IAM policy of the controller",
    "AccessDenied": "allow this action in the IAM policy of the controller",
    "AccessDeniedException": "allow this action in the IAM policy of the controller",
    "AuthFailure": "check the credentials and the clock of this machine",
    "ExpiredToken": "renew the credentials of this machine",
    "RequestLimitExceeded": "AWS throttles this account; the next check tries again",
    "Throttling": "AWS throttles this account; the next check tries again",
    "ThrottlingException": "AWS throttles this account; the next check tries again",
    "InvalidAMIID.NotFound": "name an image of this region and account",
    "InvalidSubnetID.NotFound": "correct cloud.zones in the fleet file",
    "InvalidGroup.NotFound": "correct cloud.security_groups in the fleet file",
    "InvalidSecurityGroupID.NotFound": "correct cloud.security_groups in the fleet file",
    "IdempotentParameterMismatch": "another controller with another state_dir launches the same; run one of them",
    "VcpuLimitExceeded": "ask AWS for a larger quota of vCPUs, or lower max_nodes",
    "TargetGroupNotFound": "correct balancer.target_group in the fleet file",
}


class Aws:
    """One session and its clients, made when they are first needed."""

    def __init__(self, region: str = ""):
        self._region = region
        self._session: Any = None
        self._clients: dict[str, Any] = {}

    @property
    def session(self) -> Any:
        """boto3's session. Endpoint, profile and credentials are found as boto3 finds them.

        :raises ImportError: when boto3 is missing, with a message that says what to do.
        """
        if self._session is None:
            try:
                import boto3
            except ImportError as exc:
                raise ImportError(
                    f"boto3 is not installed for {sys.executable}: pip install -r requirements.txt"
                ) from exc
            self._session = boto3.session.Session(region_name=self._region or None)
        return self._session

    def client(self, service: str) -> Any:
        """The client of one service."""
        if service not in self._clients:
            session = self.session
            from botocore.config import Config

            config = Config(
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS}, connect_timeout=5, read_timeout=60,
                user_agent_extra="moodle-fleet",
            )
            client = session.client(service, config=config)
            client.meta.events.register_first(f"needs-retry.{client.meta.service_model.service_id.hyphenize()}", _final)
            self._clients[service] = client
        return self._clients[service]


def _final(response: Any = None, **_kwargs: Any) -> None:
    """Keep botocore from asking again for what another kind or zone has: AWS says so with status 500."""
    if response is not None and response[1].get("Error", {}).get("Code") in FINAL:
        response[0].status_code = 400


@contextlib.contextmanager
def doing(what: str, error: type[Exception]) -> Iterator[None]:
    """Raise what AWS complains of as ``error``: ``Failed to {what}: ...``."""
    try:
        yield
    except error:
        raise
    except ImportError as exc:
        raise error(f"Failed to {what}: {exc}") from exc
    except Exception as exc:
        # botocore may not be there to import its errors from; what is not its own is not ours to translate.
        if not type(exc).__module__.startswith(("botocore", "boto3")):
            raise
        code = error_code(exc)
        remedy = _REMEDIES.get(code, "")
        if not code:
            remedy = "check network, region (AWS_DEFAULT_REGION or cloud.region) and credentials"
        raise error(f"Failed to {what}: {exc}{f': {remedy}' if remedy else ''}") from exc


def error_code(exc: BaseException) -> str:
    """AWS's code of an error, empty where there is none."""
    response = getattr(exc, "response", None)
    return str((response or {}).get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    """Tags as the API wants them, in a fixed order."""
    return [{"Key": key, "Value": tags[key]} for key in sorted(tags)]


def pairs(tags: list[dict[str, str]] | None) -> dict[str, str]:
    """Tags as the API gives them, as a dictionary."""
    return {str(one["Key"]): str(one["Value"]) for one in tags or ()}
