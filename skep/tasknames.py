"""What people call a task: service.place.id, and a node. Shared by managers and agents, so that both say the same."""

from skep import pb


def place(task: pb.Task) -> str:
    """The task's place within its service: its slot, of a job counted from 0; where nodes are the places, its node."""
    if not task.slot:
        return task.node_id
    return str(task.slot - 1 if task.HasField("job_iteration") else task.slot)


def full(task: pb.Task) -> str:
    """The task's name, unique in the cluster."""
    return f"{task.service_name}.{place(task)}.{task.id}"


def node(row: pb.Node) -> str:
    """What people call a node: its hostname, once it is known."""
    return row.description.hostname or row.id
