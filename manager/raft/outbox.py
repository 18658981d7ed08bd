"""Where the library believes its network is: collects messages until the driver sends them, after the disk is done."""

from typing import Any

from pysyncobj import transport

from manager.raft import messages


class Outbox(transport.Transport):  # type: ignore[misc]  # the library has no types
    """Messages of this round, and who can be reached."""

    def __init__(self) -> None:
        super().__init__(None, None, None)
        self.up: set[str] = set()
        self._held: list[tuple[str, messages.Message]] = []

    def send(self, node: Any, message: messages.Message) -> bool:
        """Keeps a message for a peer that can be reached; what goes to others is lost, as on any network."""
        if node.id not in self.up:
            return False
        self._held.append((node.id, message))
        return True

    def take(self) -> list[tuple[str, messages.Message]]:
        """All messages, in order, and none the next time."""
        held, self._held = self._held, []
        return held
