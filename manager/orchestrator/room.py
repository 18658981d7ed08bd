"""Would a task find its place once another one has gone? Looks at one node only, so it costs little."""

from manager.scheduler import filters, needs, nodes
from manager.store import views
from skep import pb


def frees_a_place(state: views.View, leaving: pb.Task, waiting: pb.Task) -> bool:
    """Whether `waiting`, which fits nowhere now, fits on the node of `leaving` when that one is not there any more."""
    node = state.nodes.get(leaving.node_id)
    if node is None or filters.unready(node) or waiting.node_id not in {"", node.id}:
        return False
    need = needs.of(state.revision(waiting.revision_id).spec)
    if need.unreadable or not filters.allowed(node, need):
        return False
    resources = node.description.resources
    load = nodes.NodeLoad(
        node=node,
        node_id=node.id,
        order=0,
        ready=True,
        cpus_free=resources.nano_cpus,
        memory_free=resources.memory_bytes,
        generic_free=needs.counted(resources),
    )
    for task in state.tasks.where("node", node.id):
        if task.id == leaving.id or not pb.TASK_STATE_ASSIGNED <= task.status.state <= pb.TASK_STATE_RUNNING:
            continue
        taken = needs.of(state.revision(task.revision_id).spec)
        load.cpus_free -= taken.nano_cpus
        load.memory_free -= taken.memory_bytes
        for kind, count in taken.generic:
            load.generic_free[kind] = load.generic_free.get(kind, 0) - count
        load.ports.update(dict.fromkeys(taken.ports))
        if task.desired_state <= pb.TASK_STATE_COMPLETE:
            load.services[task.service_id] = load.services.get(task.service_id, 0) + 1
    return filters.room(load, waiting.service_id, need)
