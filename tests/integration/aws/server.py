# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""moto's server over real HTTP, with what AWS does and moto does not.

Every call is recorded. Faults are injected per action: throttling, server errors, answers lost after the work was done.
EC2 gets idempotent launches by ClientToken, MinCount to MaxCount, capacity per zone and type, a vCPU quota, unknown images
refused, instances that DescribeInstances shows late, spot interruptions and scheduled events. Target groups get targets
that begin as ``initial``, become what a probe says, and drain.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import socket
import threading
import time
import traceback
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# moto's thousand images take a second to load, and are not looked at.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

import boto3
import moto.backends
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from .targets import Targets
from .wire import Answer, Reader, error, items, strip, to_xml

REGION = "eu-central-1"
# Credentials that boto3 wants and moto does not look at.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST", "AWS_SECRET_ACCESS_KEY": "testing-key-of-nobody",
    "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "5",
}


@dataclass(frozen=True)
class Call:
    """One API call: its service and action, its parameters flattened as on the wire, and how it was answered.

    ``outcome`` is ``ok``, an error code, or ``lost``.
    """

    service: str
    action: str
    parameters: Mapping[str, str]
    outcome: str

    def values(self, prefix: str) -> list[str]:
        """The values of a list parameter."""
        return [value for key, value in self.parameters.items() if re.fullmatch(rf"{prefix}\.\d+", key)]


@dataclass
class Fault:
    """What goes wrong with calls of an action (``*``: of any).

    ``when`` is ``before`` (refused, nothing is done), ``after`` (done, then answered with the error) or ``lost`` (done, then
    the connection ends without an answer). The first ``skip`` calls pass; of the rest every ``every``-th is hit, ``times``
    of them at most.
    """

    action: str = "*"
    code: str = "RequestLimitExceeded"
    status: int = 503
    when: str = "before"
    times: int | None = 1
    every: int = 1
    skip: int = 0
    seen: int = 0
    hit: int = 0

    def strikes(self, action: str) -> bool:
        """Whether this call is hit; counts it."""
        if self.action not in ("*", action) or (self.times is not None and self.hit >= self.times):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.seen - self.skip) % self.every:
            return False
        self.hit += 1
        return True


@dataclass
class Notice:
    """What AWS announced for an instance: ``kind`` ``spot`` or an event code such as ``instance-retirement``."""

    kind: str
    at: float = field(default_factory=lambda: time.time() + 120)


class AwsServer:
    """The server and its switches. Use as a context manager; the environment variables for clients are ``environment``."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.RLock()
        self._work = threading.RLock()
        # HTTP/1.1, so that clients keep their connections, as with AWS.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._http = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self.reset()

    def reset(self) -> None:
        """Forget everything: resources, records, faults."""
        with self._lock:
            for name in ("ec2", "elbv2", "cloudwatch", "rds", "elasticache", "efs", "iam", "ssm", "secretsmanager", "acm", "sqs", "events"):
                moto.backends.get_backend(name).reset()
            self.calls: list[Call] = []
            # Whether an answer to a Describe is given again until something is changed: moto takes 10 ms for an instance.
            self.keep_answers = False
            self._kept: dict[str, Answer] = {}
            self.faults: list[Fault] = []
            # Instances that may still start, by (zone, type); absent means unlimited.
            self.capacity: dict[tuple[str, str], int] = {}
            self.vcpu_quota: int | None = None
            # How many DescribeInstances after a launch do not show its instances yet.
            self.hidden_calls = 0
            # Seconds for which a new instance is `pending`.
            self.pending_seconds = 0.0
            self.notices: dict[str, Notice] = {}
            self.targets = Targets(self)
            # Told of each image: the instance it was made of, and its id.
            self.on_image: Callable[[str, str], None] = lambda _instance, _image: None
            self._hidden: dict[str, int] = {}
            self._tokens: dict[str, tuple[str, list[str], bytes]] = {}

    def __enter__(self) -> AwsServer:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @contextlib.contextmanager
    def as_environment(self) -> Iterator[None]:
        """Let clients of this process find the server the way they find AWS."""
        before = {key: os.environ.get(key) for key in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value

    # -- what tests ask ----------------------------------------------------------------------------------------

    def count(self, *actions: str) -> int:
        """Calls of these actions; of all where none is named."""
        return sum(not actions or call.action in actions for call in list(self.calls))

    def counts(self) -> Counter[str]:
        """Calls by action."""
        return Counter(call.action for call in list(self.calls))

    def policy_actions(self) -> set[str]:
        """The calls as IAM names them, for example ``ec2:RunInstances``."""
        return {f"{call.service}:{call.action}" for call in list(self.calls)}

    @property
    def ec2(self) -> Any:
        """moto's EC2 of the region, to look at what exists past the API."""
        return moto.backends.get_backend("ec2")[DEFAULT_ACCOUNT_ID][REGION]

    def base_image(self) -> str:
        """A bare Debian of somebody else, as in AWS's list of public images."""
        with self._work:
            found = [one.id for one in self.ec2.amis.values() if one.name == "debian-12-amd64"]
            image = found[0] if found else self.ec2.register_image("debian-12-amd64", "Debian 12").id
            self.ec2.amis[image].root_device_name = "/dev/xvda"
            return str(image)

    def instances(self, *states: str) -> list[Any]:
        """The instances in these states (default: pending or running), past the API."""
        wanted = states or ("pending", "running")
        with self._work:
            return [one for one in self.ec2.all_instances() if one.state in wanted]

    def interrupt(self, instance: str, kind: str = "spot", seconds: float = 120) -> None:
        """Announce that an instance will be taken away."""
        self.notices[instance] = Notice(kind, time.time() + seconds)

    def queue(self, fleet: str) -> str:
        """The ARN of the queue to which EventBridge brings what AWS recommends for this fleet; made where it does not exist."""
        name = f"moodle-fleet-{fleet}-events"
        boto3.client("sqs", endpoint_url=self.url, region_name=REGION).create_queue(QueueName=name, tags={"moodle_fleet": fleet})
        return f"arn:aws:sqs:{REGION}:{DEFAULT_ACCOUNT_ID}:{name}"

    def recommend(self, queue: str, instance: str, seconds_ago: float = 0) -> None:
        """Recommend to replace an instance, as EventBridge puts it into a queue."""
        event = {
            "version": "0", "id": "12345678-1234-1234-1234-123456789012", "detail-type": "EC2 Instance Rebalance Recommendation",
            "source": "aws.ec2", "account": DEFAULT_ACCOUNT_ID, "region": REGION,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds_ago)),
            "resources": [f"arn:aws:ec2:{REGION}a:instance/{instance}"], "detail": {"instance-id": instance},
        }
        sqs = boto3.client("sqs", endpoint_url=self.url, region_name=REGION)
        url = sqs.get_queue_url(QueueName=queue.rpartition(":")[2])["QueueUrl"]
        sqs.send_message(QueueUrl=url, MessageBody=json.dumps(event))

    # -- the WSGI application ----------------------------------------------------------------------------------

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        try:
            return self._serve(environ, start)
        except ConnectionError:
            raise
        except Exception:
            # A fault of this server must not look like one of AWS, which clients would ride out.
            traceback.print_exc()
            raise

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        request = Reader(environ, body)
        if not request.action:
            return self._pass(environ, body).send(start)
        with self._lock:
            fault = next((one for one in self.faults if one.strikes(request.action)), None)
        if fault is not None and fault.when == "before":
            answer = error(request, fault.code, fault.status)
        else:
            answer = self._handle(request, environ, body)
            if fault is not None:
                answer = error(request, fault.code, fault.status)
        lost = fault is not None and fault.when == "lost"
        with self._lock:
            outcome = "lost" if lost else answer.code or "ok"
            self.calls.append(Call(request.service, request.action, request.parameters, outcome))
        if lost:
            with contextlib.suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("the answer is lost on purpose")
        return answer.send(start)

    def _pass(self, environ: dict[str, Any], body: bytes) -> Answer:
        """Let moto answer."""
        inner = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        head: list[Any] = []

        def begin(status: str, headers: list[tuple[str, str]], *_more: Any) -> Callable[[bytes], None]:
            head[:] = [status, headers]
            return lambda _data: None

        with self._work:
            content = b"".join(self._moto(inner, begin))
        status, headers = head
        code = ""
        if not status.startswith("2"):
            found = re.search(rb"<Code>([^<]+)</Code>|\"__type\": ?\"([^\"]+)\"", content)
            code = (found.group(1) or found.group(2)).decode() if found else status
        return Answer(status, headers, content, code)

    def _handle(self, request: Reader, environ: dict[str, Any], body: bytes) -> Answer:
        own = getattr(self, f"_do_{request.service}_{request.action}", None)
        if own is None:
            own = self.targets.handler(request)
        look = request.action.startswith("Describe")
        key = f"{request.service} {request.action} {sorted(request.parameters.items())}"
        if not look:
            self._kept.clear()
        elif self.keep_answers and key in self._kept:
            return self._kept[key]
        answer = own(request, environ, body) if own is not None else self._pass(environ, body)
        if look and self.keep_answers:
            self._kept[key] = answer
        return answer

    # -- EC2 ---------------------------------------------------------------------------------------------------

    def _do_ec2_RunInstances(self, request: Reader, environ: dict[str, Any], _body: bytes) -> Answer:
        given = dict(request.parameters)
        token = given.get("ClientToken", "")
        asked = json.dumps(sorted(given.items()))
        with self._work:
            if token in self._tokens:
                first, names, content = self._tokens[token]
                if first != asked:
                    return error(request, "IdempotentParameterMismatch", 400)
                return Answer("200 OK", [("Content-Type", "text/xml")], self._present(content, names))
            if any(key.startswith("LaunchTemplate.") for key in given) and not self._template(given):
                return error(request, "InvalidLaunchTemplateId.NotFound", 400)
            image = given.get("ImageId") or self._template(given).get("ImageId", "")
            if image not in self.ec2.amis:
                return error(request, "InvalidAMIID.NotFound", 400)
            zone, kind = self._zone(given), given.get("InstanceType") or self._template(given).get("InstanceType", "m1.small")
            count = int(given.get("MaxCount", 1))
            if self.vcpu_quota is not None:
                used = sum(vcpus(one.instance_type) for one in self.instances())
                count = min(count, (self.vcpu_quota - used) // vcpus(kind))
                if count < int(given.get("MinCount", 1)):
                    return error(request, "VcpuLimitExceeded", 400)
            count = min(count, self.capacity.get((zone, kind), count))
            if count < int(given.get("MinCount", 1)):
                return error(request, "InsufficientInstanceCapacity", 500)
            form = {"Action": request.action, "Version": "2016-11-15", **given, "MinCount": str(count), "MaxCount": str(count), "ImageId": image}
            answer = self._pass(environ, urllib.parse.urlencode(form).encode())
            if answer.code:
                return answer
            names = re.findall(r"<instanceId>([^<]+)</instanceId>", answer.body.decode())
            if (zone, kind) in self.capacity:
                self.capacity[zone, kind] -= count
            self._hidden.update(dict.fromkeys(names, self.hidden_calls))
            for name in names:
                self._apply_template(name, given)
            if token:
                self._tokens[token] = (asked, names, answer.body)
            return Answer(answer.status, answer.headers, self._present(answer.body, names))

    def _template(self, given: Mapping[str, str]) -> dict[str, Any]:
        """The data of the launch template that a call names."""
        name, number = given.get("LaunchTemplate.LaunchTemplateId"), given.get("LaunchTemplate.LaunchTemplateName")
        if not name and not number:
            return {}
        wanted = {"LaunchTemplateId": name} if name else {"LaunchTemplateName": number}
        with contextlib.suppress(Exception):
            return dict(self.ec2._get_template_from_args({**wanted, "Version": given.get("LaunchTemplate.Version", "$Default")}).data)
        return {}

    def _apply_template(self, name: str, given: Mapping[str, str]) -> None:
        """What moto leaves out of a launch template."""
        options = self._template(given).get("MetadataOptions")
        if options:
            instance = self.ec2.get_instance(name)
            instance.metadata_options = type(instance.metadata_options)(options)

    def _zone(self, given: Mapping[str, str]) -> str:
        subnet = given.get("SubnetId") or given.get("NetworkInterface.1.SubnetId")
        if subnet:
            with contextlib.suppress(Exception):
                return str(self.ec2.get_subnet(subnet).availability_zone)
        return given.get("Placement.AvailabilityZone", f"{REGION}a")

    def _present(self, content: bytes, names: Iterable[str]) -> bytes:
        """An answer about instances with the states they have now."""
        tree = strip(content)
        for item in items(tree, "instancesSet"):
            name = item.findtext("instanceId") or ""
            state = item.find("instanceState")
            if name in names and state is not None:
                code, text = self._state(name)
                for tag, value in (("code", str(code)), ("name", text)):
                    found = state.find(tag)
                    if found is not None:
                        found.text = value
        return to_xml(tree, "http://ec2.amazonaws.com/doc/2016-11-15/")

    def _state(self, name: str) -> tuple[int, str]:
        instance = self.ec2.get_instance(name)
        if instance.state == "running" and time.time() - instance.launch_time.timestamp() < self.pending_seconds:
            return 0, "pending"
        return instance.state_code, instance.state

    def _do_ec2_DescribeInstances(self, request: Reader, environ: dict[str, Any], body: bytes) -> Answer:
        with self._work:
            named = {value for key, value in request.parameters.items() if key.startswith("InstanceId.")}
            if any(self._hidden.get(name) for name in named):
                return error(request, "InvalidInstanceID.NotFound", 400)
            answer = self._pass(environ, body)
            fresh = [name for name, calls in self._hidden.items() if calls > 0]
            if answer.code or not (fresh or self.pending_seconds):
                return answer
            tree = strip(answer.body)
            for reservation in items(tree, "reservationSet"):
                shown = reservation.find("instancesSet")
                for item in list(shown if shown is not None else ()):
                    if shown is not None and item.findtext("instanceId") in fresh:
                        shown.remove(item)
            self._hidden = {name: calls - 1 for name, calls in self._hidden.items() if calls > 1}
            content = to_xml(tree, "http://ec2.amazonaws.com/doc/2016-11-15/")
            every = [one.id for one in self.ec2.all_instances()] if self.pending_seconds else []
            return Answer(answer.status, answer.headers, self._present(content, every))

    def _do_ec2_CreateTags(self, request: Reader, environ: dict[str, Any], body: bytes) -> Answer:
        named = {value for key, value in request.parameters.items() if key.startswith("ResourceId.")}
        if any(self._hidden.get(name) for name in named):
            return error(request, "InvalidInstanceID.NotFound", 400)
        return self._pass(environ, body)

    def _do_ec2_CreateImage(self, request: Reader, environ: dict[str, Any], _body: bytes) -> Answer:
        """moto takes no tags for snapshots, and the same name twice."""
        with self._work:
            if any(one.name == request.parameters.get("Name") for one in self.ec2.amis.values()):
                return error(request, "InvalidAMIName.Duplicate", 400)
            kinds = {k.split(".")[1]: v for k, v in request.parameters.items() if k.endswith(".ResourceType")}
            form = {k: v for k, v in request.parameters.items() if kinds.get((k + "..").split(".")[1]) != "snapshot"}
            form |= {"Action": request.action, "Version": "2016-11-15"}
            answer = self._pass(environ, urllib.parse.urlencode(form).encode())
            found = re.search(rb"<imageId>([^<]+)</imageId>", answer.body)
            for number in [number for number, kind in kinds.items() if kind == "snapshot" and found]:
                image = self.ec2.amis[found.group(1).decode()]
                start = f"TagSpecification.{number}.Tag."
                keys = {k.removesuffix(".Key"): v for k, v in request.parameters.items() if k.startswith(start) and k.endswith(".Key")}
                image.ebs_snapshot.add_tags({key: request.parameters[f"{place}.Value"] for place, key in keys.items()})
        if found:
            self.on_image(request.parameters["InstanceId"], found.group(1).decode())
        return answer

    def _do_ec2_DeleteLaunchTemplateVersions(self, request: Reader, _environ: dict[str, Any], _body: bytes) -> Answer:
        """moto has no such action."""
        wanted = {int(v) for k, v in request.parameters.items() if k.startswith("LaunchTemplateVersion.")}
        with self._work:
            for template in self.ec2.launch_templates.values():
                if request.parameters.get("LaunchTemplateName") in (None, template.name):
                    template.versions = [one for one in template.versions if one.number not in wanted]
        return Answer("200 OK", [("Content-Type", "text/xml")], b"<DeleteLaunchTemplateVersionsResponse/>")

    def _do_ec2_DescribeSpotInstanceRequests(self, request: Reader, _environ: dict[str, Any], _body: bytes) -> Answer:
        """moto keeps no request for instances launched by RunInstances."""
        rows = []
        codes = [v for k, v in request.parameters.items() if re.fullmatch(r"Filter\.\d+\.Value\.\d+", k)]
        for one in self.instances():
            if one.lifecycle != "spot":
                continue
            notice = self.notices.get(one.id)
            code = "marked-for-termination" if notice and notice.kind == "spot" else "fulfilled"
            began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(notice.at - 120 if notice else time.time()))
            if "marked-for-termination" in codes and code not in codes:
                continue
            rows.append(
                f"<item><spotInstanceRequestId>sir-{one.id[2:10]}</spotInstanceRequestId><state>active</state>"
                f"<instanceId>{one.id}</instanceId><status><code>{code}</code><updateTime>{began}</updateTime></status></item>"
            )
        text = f"<DescribeSpotInstanceRequestsResponse><spotInstanceRequestSet>{''.join(rows)}</spotInstanceRequestSet></DescribeSpotInstanceRequestsResponse>"
        return Answer("200 OK", [("Content-Type", "text/xml")], text.encode())

    def _do_ec2_DescribeInstanceStatus(self, request: Reader, environ: dict[str, Any], body: bytes) -> Answer:
        """moto knows no scheduled events."""
        if not any("event." in value for value in request.parameters.values()):
            return self._pass(environ, body)
        rows = []
        for one in self.instances():
            notice = self.notices.get(one.id)
            if notice is None or notice.kind == "spot":
                continue
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(notice.at))
            rows.append(
                f"<item><instanceId>{one.id}</instanceId><eventsSet><item><code>{notice.kind}</code>"
                f"<description>The instance is running on degraded hardware</description><notBefore>{when}</notBefore></item></eventsSet></item>"
            )
        text = f"<DescribeInstanceStatusResponse><instanceStatusSet>{''.join(rows)}</instanceStatusSet></DescribeInstanceStatusResponse>"
        return Answer("200 OK", [("Content-Type", "text/xml")], text.encode())


def vcpus(kind: str) -> int:
    """vCPUs of an instance type, by its size."""
    size = kind.partition(".")[2]
    found = re.fullmatch(r"(\d*)xlarge", size)
    return 4 * int(found.group(1) or 1) if found else 2
