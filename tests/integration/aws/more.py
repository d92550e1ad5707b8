# Copyright: Moodle Fleet contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the bootstrap needs and moto does not know, answered from moto's own state. Import it before a server starts.

EFS: tags by its older calls. ElastiCache: parameter groups, and deletion. Load balancers: the attributes
that a new one has. RDS: parameters that have their engine's value, a parameter group that does not exist, a gp3 disk's throughput.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, EmptyResult, PaginatedResult
from moto.efs import urls
from moto.efs.models import EFSBackend
from moto.efs.responses import EFSResponse
from moto.elasticache.models import ElastiCacheBackend
from moto.elasticache.responses import ElastiCacheResponse
from moto.elbv2.models import FakeLoadBalancer
from moto.rds.exceptions import DBParameterGroupNotFoundError
from moto.rds.models import DBInstance
from moto.rds.responses import RDSResponse

# As AWS documents them.
ATTRIBUTES = {"idle_timeout.timeout_seconds": "60", "routing.http.drop_invalid_header_fields.enabled": "false"}

PARAMETERS = ("require_secure_transport", "character_set_server", "collation_server", "max_connections")


class NotFound(ServiceException):
    """There is no parameter group of this name."""

    code = "CacheParameterGroupNotFound"


def _describe_tags(self: EFSResponse) -> Any:
    resource = self.path.rstrip("/").rsplit("/", 1)[-1]
    backend: EFSBackend = self.efs_backend
    return json.dumps({"Tags": backend.list_tags_for_resource(resource)}), {"Content-Type": "application/json"}


def _create_tags(self: EFSResponse) -> Any:
    resource = self.path.rstrip("/").rsplit("/", 1)[-1]
    self.efs_backend.tag_resource(resource, {one["Key"]: one["Value"] for one in json.loads(self.body)["Tags"]})
    return "{}", {"Content-Type": "application/json"}


def _delete_tags(self: EFSResponse) -> Any:
    resource = self.path.rstrip("/").rsplit("/", 1)[-1]
    self.efs_backend.untag_resource(resource, json.loads(self.body)["TagKeys"])
    return "{}", {"Content-Type": "application/json"}


def _groups(self: ElastiCacheResponse) -> dict[str, dict[str, str]]:
    backend: ElastiCacheBackend = self.elasticache_backend
    # A reset makes a new backend, and with it no groups.
    if not hasattr(backend, "parameter_groups"):
        backend.parameter_groups = {}
    return backend.parameter_groups


def _group(self: ElastiCacheResponse) -> dict[str, str]:
    name = self._get_param("CacheParameterGroupName")
    if name not in _groups(self):
        raise NotFound(f"CacheParameterGroup {name} not found.")
    return _groups(self)[name]


def _create_cache_parameter_group(self: ElastiCacheResponse) -> ActionResult:
    name = self._get_param("CacheParameterGroupName")
    _groups(self)[name] = {}
    return ActionResult({"CacheParameterGroup": {"CacheParameterGroupName": name}})


def _modify_cache_parameter_group(self: ElastiCacheResponse) -> ActionResult:
    pairs = self._get_param("ParameterNameValues")
    _group(self).update({one["ParameterName"]: one["ParameterValue"] for one in pairs})
    return ActionResult({"CacheParameterGroupName": self._get_param("CacheParameterGroupName")})


def _describe_cache_parameters(self: ElastiCacheResponse) -> ActionResult:
    found = [{"ParameterName": key, "ParameterValue": value} for key, value in sorted(_group(self).items())]
    return PaginatedResult({"Parameters": found})


def _delete_cache_parameter_group(self: ElastiCacheResponse) -> ActionResult:
    _group(self)
    del _groups(self)[self._get_param("CacheParameterGroupName")]
    return EmptyResult()


_delete = ElastiCacheResponse.delete_replication_group


def _delete_replication_group(self: ElastiCacheResponse) -> ActionResult:
    answer = _delete(self)
    # AWS takes minutes until it is gone; moto keeps it for ever.
    del self.elasticache_backend.replication_groups[self._get_param("ReplicationGroupId")]
    return answer


def _delete_cache_subnet_group(self: ElastiCacheResponse) -> ActionResult:
    name = self._get_param("CacheSubnetGroupName")
    self.elasticache_backend.describe_cache_subnet_groups(cache_subnet_group_name=name)
    del self.elasticache_backend.cache_subnet_groups[name]
    return EmptyResult()


_find_parameter_groups = RDSResponse.describe_db_parameter_groups


def _describe_db_parameter_groups(self: RDSResponse) -> ActionResult:
    name = self.params.get("DBParameterGroupName")
    if name and name not in self.backend.db_parameter_groups:
        raise DBParameterGroupNotFoundError(name)
    return _find_parameter_groups(self)


def _describe_db_parameters(self: RDSResponse) -> ActionResult:
    name = self.params["DBParameterGroupName"]
    if name not in self.backend.db_parameter_groups:
        raise DBParameterGroupNotFoundError(name)
    ours = self.backend.db_parameter_groups[name].parameters
    usual = {"DataType": "string", "IsModifiable": True, "ApplyType": "dynamic"}
    found = [{"ParameterName": key, **usual, **ours.get(key, {})} for key in sorted({*PARAMETERS, *ours})]
    return ActionResult({"Parameters": found})


# A gp3 disk has them whether they were asked for or not.
DBInstance.storage_throughput = property(lambda _self: 125, lambda _self, _value: None)
DBInstance.iops = property(lambda _self: 3000, lambda _self, _value: None)
RDSResponse.describe_db_parameter_groups = _describe_db_parameter_groups
RDSResponse.describe_db_parameters = _describe_db_parameters

_begin = FakeLoadBalancer.__init__


def _load_balancer(self: FakeLoadBalancer, *arguments: Any, **more: Any) -> None:
    _begin(self, *arguments, **more)
    self.attrs = {**ATTRIBUTES, **self.attrs}


FakeLoadBalancer.__init__ = _load_balancer
EFSResponse.describe_tags = _describe_tags
EFSResponse.create_tags = _create_tags
EFSResponse.delete_tags = _delete_tags
for path in ("tags", "create-tags", "delete-tags"):
    urls.url_paths[f"/2015-02-01/{path}/<resource_id>"] = urls.response.dispatch
for function in (
    _create_cache_parameter_group, _modify_cache_parameter_group, _describe_cache_parameters, _delete_cache_parameter_group,
    _delete_cache_subnet_group, _delete_replication_group,
):
    setattr(ElastiCacheResponse, function.__name__[1:], function)

if __name__ == "__main__":
    # A server to try things against: python -m ...more -p 5055
    from moto.server import main

    main(sys.argv[1:])
