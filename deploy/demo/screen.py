"""What the demo shows: a table that updates in place on a terminal, plain lines in a pipe."""

import sys
from collections.abc import Sequence
from typing import Any

from rich import console, live, table, text

COLOURS = {
    "running": "green", "ready": "green", "starting": "yellow", "preparing": "yellow", "pending": "yellow",
    "failed": "red", "rejected": "red", "down": "red", "shutdown": "bright_black", "complete": "bright_black",
}  # fmt: skip


class Screen:
    """One area of the terminal that is redrawn, with the story so far above it."""

    def __init__(self) -> None:
        self._console = console.Console(highlight=False)
        self._terminal = sys.stdout.isatty()
        self._live: live.Live | None = None
        self._last = ""

    def __enter__(self) -> "Screen":
        if self._terminal:
            self._live = live.Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def title(self, line: str) -> None:
        """Announces a step."""
        self._print(f"\n[bold]{line}[/bold]" if self._terminal else f"\n== {line}")

    def say(self, line: str) -> None:
        """A line of the story."""
        self._print(f"   {line}")

    def passed(self, line: str) -> None:
        """A step that truly came about."""
        self._print(f"   [green]ok[/green] {line}" if self._terminal else f"   ok: {line}")

    def _print(self, line: str) -> None:
        if self._terminal:
            self._console.print(line)
        else:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def tasks(self, nodes: Sequence[dict[str, Any]], tasks: Sequence[dict[str, Any]], note: str = "") -> None:
        """Shows who runs what. In a pipe: one line when it differs from the last."""
        names = {node["ID"]: node["Description"]["Hostname"] for node in nodes}
        live_tasks = [task for task in tasks if task["DesiredState"] in {"running", "ready"}]
        live_tasks.sort(key=lambda task: (task.get("Slot", 0), task["CreatedAt"]))
        if self._live is not None:
            self._live.update(self._table(nodes, names, live_tasks, note))
            return
        count = sum(task["Status"]["State"] == "running" for task in live_tasks)
        line = f"{count}/{len(live_tasks)} running: " + ", ".join(
            f"{task.get('Slot', 0)}:{task['Status']['State']}@{names.get(task.get('NodeID', ''), '-')}"
            for task in live_tasks
        )
        if line != self._last:
            self._last = line
            self._print(f"   {line}")

    @staticmethod
    def _table(
        nodes: Sequence[dict[str, Any]], names: dict[str, str], tasks: Sequence[dict[str, Any]], note: str
    ) -> table.Table:
        rows = table.Table(title=note or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2))
        for heading in ("TASK", "IMAGE", "NODE", "DESIRED", "STATE", "PORTS"):
            rows.add_column(heading)
        for task in tasks:
            state = task["Status"]["State"]
            ports = task["Status"].get("PortStatus", {}).get("Ports") or []
            rows.add_row(
                f"web.{task.get('Slot', 0)}",
                task["Spec"]["ContainerSpec"]["Image"],
                names.get(task.get("NodeID", ""), "-"),
                task["DesiredState"],
                text.Text(state, style=COLOURS.get(state, "")),
                " ".join(str(port.get("PublishedPort", "")) for port in ports),
            )
        for node in nodes:
            state = node["Status"]["State"]
            leader = " leader" if node.get("ManagerStatus", {}).get("Leader") else ""
            rows.add_row(
                "", "", f"[bold]{node['Description']['Hostname']}[/bold]", node["Spec"]["Availability"],
                text.Text(state + leader, style=COLOURS.get(state, "")), "",
            )  # fmt: skip
        return rows
