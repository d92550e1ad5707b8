# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The part of an Application Load Balancer that moto has not: it sends requests to targets, as AWS documents it.

Healthy targets get them, those with the fewest under way first; without any healthy one all registered ones do (fail open);
without any registered one the answer is 503. Draining targets get none.
"""

from __future__ import annotations

import http.client
import http.server
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import boto3

from .server import REGION, AwsServer
from .targets import Target


class LoadBalancer:
    """A running balancer with one target group. ``where`` maps an instance to the address it really has."""

    def __init__(self, server: AwsServer, **attributes: str):
        self.server = server
        self.where: dict[str, str] = {}
        elb = boto3.client("elbv2", endpoint_url=server.url, region_name=REGION)
        ec2 = boto3.client("ec2", endpoint_url=server.url, region_name=REGION)
        vpc = ec2.create_vpc(CidrBlock="10.30.0.0/16")["Vpc"]["VpcId"]
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.30.{i}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"]["SubnetId"]
            for i, zone in enumerate("ab")
        ]
        made = elb.create_load_balancer(Name="fleet", Subnets=subnets, Type="application")["LoadBalancers"][0]
        self.arn: str = made["LoadBalancerArn"]
        group = elb.create_target_group(Name="web", Protocol="HTTP", Port=80, VpcId=vpc, HealthCheckPath="/healthz")
        self.group: str = group["TargetGroups"][0]["TargetGroupArn"]
        elb.create_listener(
            LoadBalancerArn=self.arn, Protocol="HTTP", Port=80,
            DefaultActions=[{"Type": "forward", "TargetGroupArn": self.group}],
        )
        if attributes:
            elb.modify_target_group_attributes(
                TargetGroupArn=self.group, Attributes=[{"Key": key, "Value": value} for key, value in attributes.items()]
            )
        server.targets.probe = self._probe
        server.calls.clear()
        self._busy: Counter[str] = Counter()
        self._lock = threading.Lock()
        balancer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                # TLS ends at the balancer, which says whom it speaks for.
                headers = {"X-Forwarded-For": self.client_address[0], "X-Forwarded-Proto": "https"}
                status, body = balancer._forward(self.path, {"Host": self.headers["Host"], **headers})
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def settings(self, **more: Any) -> dict[str, Any]:
        """The section ``balancer`` of a fleet file."""
        return {"driver": "alb", "target_group": self.group, "load_balancer": self.arn, "networks": ["10.30.0.0/16"], **more}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _probe(self, target: Target) -> bool:
        return self._ask(target, "/healthz")[0] == 200

    def _ask(self, target: Target, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.where.get(target.id, "127.0.0.254"), target.port, timeout=20)
        try:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 502, b""
        finally:
            connection.close()

    def _forward(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        known = [(target, self.server.targets.state(self.group, target)[0]) for target in self.server.targets.current(self.group)]
        present = [target for target, state in known if state != "draining"]
        chosen = [target for target, state in known if state == "healthy"] or present
        if not chosen:
            return 503, b""
        with self._lock:
            target = min(chosen, key=lambda one: (self._busy[one.id], one.id))
            self._busy[target.id] += 1
        try:
            return self._ask(target, path, headers)
        finally:
            with self._lock:
                self._busy[target.id] -= 1


def put_minute(server: AwsServer, balancer: LoadBalancer, start: float, **values: float) -> None:
    """Tell CloudWatch of one minute, as the balancer does: ``RequestCount``, ``TargetResponseTime`` (each request's own)."""
    import datetime

    client = boto3.client("cloudwatch", endpoint_url=server.url, region_name=REGION)
    name = balancer.arn.partition(":loadbalancer/")[2]
    group = balancer.group.rpartition(":")[2]
    when = datetime.datetime.fromtimestamp(start, datetime.timezone.utc)
    data = []
    for metric, value in values.items():
        dimensions = [{"Name": "LoadBalancer", "Value": name}]
        if metric not in ("RejectedConnectionCount", "HTTPCode_ELB_5XX_Count"):
            dimensions.append({"Name": "TargetGroup", "Value": group})
        data.append({"MetricName": metric, "Dimensions": dimensions, "Timestamp": when, "Value": value})
    client.put_metric_data(Namespace="AWS/ApplicationELB", MetricData=data)
    server.calls.clear()
