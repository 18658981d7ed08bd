"""The calling side of Membership: finding the leader, and asking it to take this node in or let it go."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc.aio

from skep import errors, pb
from skep.security import rpc_errors, tls
from skep.v1 import ca_pb2_grpc

JOIN_TIMEOUT_S = 90.0  # the leader dials back, then lets the newcomer catch up: a minute for a large state
LEAVE_TIMEOUT_S = 30.0  # a transfer of the lead, or one change of the group
PATIENCE_S = 120.0  # elections and other members' changes pass; this is for all attempts together
BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 3.0
HOPS_MAX = 5  # leaders named by leaders, within one round

R = TypeVar("R")


async def join_raft(
    dial: tls.Dial, addrs: Sequence[str], *, own_addr: str, patience_s: float = PATIENCE_S
) -> list[pb.RaftMember]:
    """Makes this manager a member of the group; returns all members, this one among them.

    `addrs` are cluster addresses of managers; this one must serve its cluster port at `own_addr` already, because the
    leader dials back. Safe to repeat. Raises Denied, FailedPrecondition (cannot be dialled back) or Invalid as the
    leader says, and Unavailable when none is found in time.
    """

    async def call(channel: grpc.aio.Channel) -> tuple[str, list[pb.RaftMember]]:
        stub = ca_pb2_grpc.MembershipStub(channel)
        answer = await stub.JoinRaft(pb.JoinRaftRequest(addr=own_addr), timeout=JOIN_TIMEOUT_S)
        return answer.leader_addr, list(answer.members)

    return await _ask_leader(dial, addrs, call, patience_s=patience_s)


async def leave_cluster(dial: tls.Dial, addrs: Sequence[str], *, patience_s: float = PATIENCE_S) -> None:
    """Tells the cluster that this node leaves for good; a manager is first taken out of the group.

    Call it while this node's own cluster port still answers: a leader hands over the lead first. Safe to repeat.
    Raises FailedPrecondition when the group would lose its quorum or its last member, Unavailable without a leader.
    """

    async def call(channel: grpc.aio.Channel) -> tuple[str, None]:
        stub = ca_pb2_grpc.MembershipStub(channel)
        answer = await stub.LeaveCluster(pb.LeaveClusterRequest(), timeout=LEAVE_TIMEOUT_S)
        return answer.leader_addr, None

    await _ask_leader(dial, addrs, call, patience_s=patience_s)


async def _ask_leader(
    dial: tls.Dial,
    addrs: Sequence[str],
    call: Callable[[grpc.aio.Channel], Awaitable[tuple[str, R]]],
    *,
    patience_s: float,
) -> R:
    """Calls one address after the other, following whoever names a leader, until one answers for itself."""
    if not addrs:
        raise errors.Unavailable("no manager's address is known")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    backoff_s = BACKOFF_S_MIN
    failure: errors.SkepError
    while True:
        failure = errors.Unavailable("the managers name each other as leader: an election is under way")
        for first in addrs:
            addr = first
            for _ in range(HOPS_MAX):
                try:
                    async with dial(addr) as channel:
                        with rpc_errors.translated(f"the manager at {addr}"):
                            leader_addr, result = await call(channel)
                except errors.Unavailable as error:
                    failure = error
                    break
                if not leader_addr:
                    return result
                addr = leader_addr
        if loop.time() + backoff_s > deadline:
            raise failure
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)
