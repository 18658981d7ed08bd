"""Kills what a task left behind when its supervisor can no longer do it.

Each process must be proven to be the task's: by its control group, or by PID, start time and boot, or by the task's
mark in its environment. Anything else is left alone.
"""

import signal

import structlog

from agent.runtime.process import files, proof

log = structlog.get_logger(__name__)


def kill(run: files.Run, task: files.Task, *, node_id: str) -> None:
    """SIGKILL to supervisor, command and marked descendants. Blocking; reads all of /proc once."""
    if run.boot_id != proof.boot_id():
        return  # the machine was restarted: nothing of it can be left

    def is_shim() -> bool:
        return proof.alive(run.shim_pid, start=run.shim_start, boot=run.boot_id)

    def is_command() -> bool:
        return proof.alive(run.pid, start=run.pid_start, boot=run.boot_id)

    proof.signal_if(run.shim_pid, signal.SIGKILL, proven=is_shim)
    proof.signal_if(run.pid, signal.SIGKILL, proven=is_command)
    marks = [f"SKEP_TASK_ID={task.task_id}", f"SKEP_NODE_ID={node_id}"]
    for pid in proof.pids():
        found = proof.status(pid)
        if found is None or found.start < run.pid_start or not proof.environ_holds(pid, marks):
            continue
        log.info("process.leftover_killed", task=task.task_id, pid=pid)
        proof.signal_if(pid, signal.SIGKILL, proven=lambda pid=pid: proof.environ_holds(pid, marks))  # type: ignore[misc]
