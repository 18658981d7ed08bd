"""Objects of the store in Docker's shapes. Joins what Docker shows as one and the store keeps apart.

Everything here works on one view and must not outlive it.
"""

import functools
from collections.abc import Mapping
from typing import Any

from manager.ca import authority
from manager.control import defaults
from manager.orchestrator import dirty, tasks
from manager.store import views
from skep import durations, jsonmap, pb, stamps
from skep.security import keys

Json = dict[str, Any]

# What Docker's clients expect of a cluster; skep has no address pools to choose from.
ADDR_POOL = ["10.0.0.0/8"]
SUBNET_SIZE = 24
DATA_PATH_PORT = 4789

LOOP_MIN = 2  # failures in a row that are worth a word


def service(view: views.View, row: pb.Service, *, with_defaults: bool = False, with_status: bool = False) -> Json:
    """GET /services: the service with its present and previous specification."""
    spec = view.spec(row)
    shown = jsonmap.to_json(row)
    shown["Spec"] = jsonmap.to_json(defaults.filled(spec) if with_defaults else spec)
    previous = view.revisions.get(row.previous_revision_id) if row.previous_revision_id else None
    if previous is not None:
        shown["PreviousSpec"] = jsonmap.to_json(previous.spec)
    shown["Endpoint"] = _endpoint(spec.endpoint)
    if with_status:
        shown["ServiceStatus"] = _service_status(view, row, spec)
    return shown


def _endpoint(endpoint: pb.EndpointSpec) -> Json:
    if not endpoint.ports:
        return {"Spec": {}}
    shown = jsonmap.to_json(endpoint)
    return {"Spec": shown, "Ports": shown["Ports"]}


def _service_status(view: views.View, row: pb.Service, spec: pb.ServiceSpec) -> Json:
    mode = spec.mode.WhichOneof("mode")
    iteration = row.job_status.job_iteration.index
    running = unfinished = completed = 0
    nodes: dict[str, None] = {}  # on which one is wished
    for task in view.tasks.where("service", row.id):
        state = task.status.state
        if task.job_iteration.index != iteration:
            continue
        completed += state == pb.TASK_STATE_COMPLETE
        if not tasks.runnable(task):
            continue
        nodes[task.node_id] = None
        unfinished += state < pb.TASK_STATE_COMPLETE
        if state == pb.TASK_STATE_RUNNING:
            node = view.nodes.get(task.node_id)
            running += node is not None and node.status.state != pb.NODE_STATE_DOWN
    desired = {
        "replicated": spec.mode.replicated.replicas,
        "global": len(nodes),
        "replicated_job": spec.mode.replicated_job.max_concurrent,
        "global_job": unfinished,
    }
    shown = completed if row.HasField("job_status") else 0
    return {"RunningTasks": running, "DesiredTasks": desired.get(str(mode), 0), "CompletedTasks": shown}


class Tasks:
    """Renders many tasks of one view; tasks of a revision share the rendering of their specification."""

    def __init__(self, view: views.View, *, now: float) -> None:
        self._view = view
        self._now = now
        self._specs: dict[str, Json] = {}
        self._comparisons: dict[str, dirty.Comparison] = {}

    def render(self, row: pb.Task) -> Json:
        """GET /tasks: the task with the specification of its revision."""
        shown = jsonmap.to_json(row)
        if row.slot and row.HasField("job_iteration"):
            shown["Slot"] = row.slot - 1  # Docker's clients count the places of a job from 0
        shown["Labels"] = {}
        shown["Spec"] = self._spec(row.revision_id)
        status = shown.setdefault("Status", {})
        status.setdefault("PortStatus", {})
        looping = self._crash_loop(row)
        if looping:
            status.setdefault("Err", looping)
        return shown

    def _crash_loop(self, row: pb.Task) -> str:
        """What its status says of a task that waits because those before it failed; its agent only says "prepared"."""
        due = stamps.seconds(row.not_before)
        waits = row.desired_state == pb.TASK_STATE_READY and not tasks.ended(row) and self._now < due
        if not waits or row.failures < LOOP_MIN:
            return ""
        return f"failed {row.failures} times in a row, starts again in {durations.words(due - self._now)}"

    def up_to_date(self, row: pb.Task) -> bool:
        """Whether the task runs what its service asks for now, so that an update need not replace it."""
        owner = self._view.services.get(row.service_id)
        if owner is None:
            return False
        comparison = self._comparisons.get(owner.id)
        if comparison is None:
            comparison = self._comparisons[owner.id] = dirty.Comparison(self._view, owner)
        return not comparison.dirty(row)

    def _spec(self, revision_id: str) -> Json:
        known = self._specs.get(revision_id)
        if known is None:
            known = self._specs[revision_id] = jsonmap.to_json(self._view.revision(revision_id).spec.task)
        return known


def node(row: pb.Node, managers: Mapping[str, pb.ManagerStatus]) -> Json:
    """GET /nodes: managers, and only they, with their standing in the Raft group as it is now."""
    shown = jsonmap.to_json(row)
    shown.pop("ManagerStatus", None)
    shown.setdefault("Spec", jsonmap.to_json(pb.NodeSpec()))
    shown.setdefault("Description", {})
    shown.setdefault("Status", jsonmap.to_json(pb.NodeStatus()))
    _facts(row.description, shown)
    standing = managers.get(row.id)
    if standing is not None:
        shown["ManagerStatus"] = jsonmap.to_json(standing)
    return shown


def _facts(description: pb.NodeDescription, shown: Json) -> None:
    """What Docker's nodes do not have. One without its engine is not ready, whatever its agent says."""
    wrong = description.conditions
    shown["Description"]["Conditions"] = [jsonmap.to_json(each) for each in wrong]
    if description.HasField("disk"):
        shown["Description"]["Disk"] = jsonmap.to_json(description.disk)
    shown["Description"]["HostPorts"] = list(description.host_ports)
    if wrong and not shown["Status"].get("Message"):
        shown["Status"]["Message"] = "; ".join(f"{each.summary}: {each.message}" for each in wrong)
    if any(each.kind == "engine" for each in wrong) and shown["Status"].get("State") == "ready":
        shown["Status"]["State"] = "disconnected"


def secret(row: pb.Secret) -> Json:
    """GET /secrets: everything but the data."""
    bare = pb.Secret()
    bare.CopyFrom(row)
    bare.spec.ClearField("data")
    return jsonmap.to_json(bare)


def cluster(row: pb.Cluster, *, with_tokens: bool) -> Json:
    """GET /swarm, and without the tokens the part of /info about the cluster."""
    shown = jsonmap.to_json(row)
    shown["TLSInfo"] = tls_info(row.root_ca.cert_pem)
    shown["RootRotationInProgress"] = False
    shown["DefaultAddrPool"] = ADDR_POOL
    shown["SubnetSize"] = SUBNET_SIZE
    shown["DataPathPort"] = DATA_PATH_PORT
    if with_tokens:
        worker, manager = authority.join_tokens(row)
        shown["JoinTokens"] = {"Worker": worker, "Manager": manager}
    return shown


@functools.lru_cache(maxsize=4)
def _tls_info(root_pem: bytes) -> pb.TLSInfo:
    subject, public_key = keys.issuer(root_pem)
    return pb.TLSInfo(trust_root=root_pem.decode(), cert_issuer_subject=subject, cert_issuer_public_key=public_key)


def tls_info(root_pem: bytes) -> Json:
    """The authority as clients compare it; empty while there is no certificate."""
    return jsonmap.to_json(_tls_info(root_pem)) if root_pem else {}
