"""The core's messages (the library's dicts) to frames and back. The one place that knows how a frame is filled.

A frame that cannot be read raises ValueError; nothing in it is ever executed or unpickled.
"""

from typing import Any

from manager.raft import commands, snapshot
from skep import pb

Message = dict[str, Any]

KINDS = {
    "append_entries": pb.RAFT_FRAME_KIND_APPEND,
    "next_node_idx": pb.RAFT_FRAME_KIND_APPEND_REPLY,
    "request_vote": pb.RAFT_FRAME_KIND_VOTE,
    "response_vote": pb.RAFT_FRAME_KIND_VOTE_REPLY,
    "pre_vote": pb.RAFT_FRAME_KIND_PREVOTE,
    "pre_vote_reply": pb.RAFT_FRAME_KIND_PREVOTE_REPLY,
    "install_snapshot": pb.RAFT_FRAME_KIND_SNAPSHOT,
    "timeout_now": pb.RAFT_FRAME_KIND_TIMEOUT_NOW,
    "configuration": pb.RAFT_FRAME_KIND_CONFIGURATION,
}


def encode(message: Message) -> pb.RaftFrame:
    """The frame that carries `message`."""
    kind = message["type"]
    frame = pb.RaftFrame(kind=KINDS[kind], term=message["term"])
    match kind:
        case "append_entries":
            frame.commit = message["commit_index"]
            frame.round = message["round"]
            frame.prev_index, frame.prev_term = message["prevLogIdx"], message["prevLogTerm"]
            for command, index, term in message["entries"]:
                frame.entries.add(index=index, term=term, command=command)
        case "next_node_idx":
            frame.next_index, frame.round = message["next_node_idx"], message["round"]
            frame.reset, frame.success = message["reset"], message["success"]
            if message["snapshot"] is not None:
                frame.snapshot_ack.index, frame.snapshot_ack.blocks = message["snapshot"]
        case "request_vote":
            frame.prev_index, frame.prev_term = message["last_log_index"], message["last_log_term"]
            frame.forced = message["forced"]
        case "pre_vote":
            frame.prev_index, frame.prev_term = message["last_log_index"], message["last_log_term"]
            frame.configuration_index = message["configuration_index"]
        case "pre_vote_reply":
            frame.success, frame.current_term = message["granted"], message["current_term"]
            if message["configuration"] is not None:
                frame.configuration.CopyFrom(commands.configuration(*message["configuration"]))
        case "install_snapshot":
            frame.commit, frame.round = message["commit_index"], message["round"]
            frame.block.CopyFrom(
                pb.RaftSnapshotBlock(
                    snapshot=message["snapshot"].message(), number=message["number"], data=message["data"]
                )
            )
        case "configuration":
            frame.configuration.CopyFrom(commands.configuration(*message["configuration"]))
        case _:
            pass  # the term says it all
    return frame


def decode(frame: pb.RaftFrame) -> Message:
    """The message in `frame`. Raises ValueError for a kind that this version does not know."""
    match frame.kind:
        case pb.RAFT_FRAME_KIND_APPEND:
            fields: Message = {
                "type": "append_entries",
                "commit_index": frame.commit,
                "round": frame.round,
                "prevLogIdx": frame.prev_index,
                "prevLogTerm": frame.prev_term,
                "entries": [(entry.command, entry.index, entry.term) for entry in frame.entries],
            }
            if any(entry.index != frame.prev_index + 1 + i for i, entry in enumerate(frame.entries)):
                raise ValueError("raft: entries with gaps")
        case pb.RAFT_FRAME_KIND_APPEND_REPLY:
            ack = (frame.snapshot_ack.index, frame.snapshot_ack.blocks) if frame.HasField("snapshot_ack") else None
            fields = {
                "type": "next_node_idx",
                "next_node_idx": frame.next_index,
                "round": frame.round,
                "reset": frame.reset,
                "success": frame.success,
                "snapshot": ack,
            }
        case pb.RAFT_FRAME_KIND_VOTE | pb.RAFT_FRAME_KIND_PREVOTE:
            forced = frame.kind == pb.RAFT_FRAME_KIND_VOTE and frame.forced
            fields = {
                "type": "request_vote" if frame.kind == pb.RAFT_FRAME_KIND_VOTE else "pre_vote",
                "last_log_index": frame.prev_index,
                "last_log_term": frame.prev_term,
                "forced": forced,
                "configuration_index": frame.configuration_index,
            }
        case pb.RAFT_FRAME_KIND_PREVOTE_REPLY:
            known = frame.configuration
            newer = (known.index, commands.from_configuration(known)) if frame.HasField("configuration") else None
            fields = {
                "type": "pre_vote_reply",
                "granted": frame.success,
                "current_term": frame.current_term,
                "configuration": newer,
            }
        case pb.RAFT_FRAME_KIND_CONFIGURATION:
            told = frame.configuration
            fields = {"type": "configuration", "configuration": (told.index, commands.from_configuration(told))}
        case pb.RAFT_FRAME_KIND_SNAPSHOT:
            fields = {
                "type": "install_snapshot",
                "commit_index": frame.commit,
                "round": frame.round,
                "snapshot": snapshot.Snapshot.of(frame.block.snapshot),
                "number": frame.block.number,
                "data": frame.block.data,
            }
        case pb.RAFT_FRAME_KIND_VOTE_REPLY:
            fields = {"type": "response_vote"}
        case pb.RAFT_FRAME_KIND_TIMEOUT_NOW:
            fields = {"type": "timeout_now"}
        case _:
            raise ValueError(f"raft: unknown kind of frame {frame.kind}")
    fields["term"] = frame.term
    return fields
