"""The door to PySyncObj: known releases only, deterministic order, and nothing of its own machinery runs."""

import asyncio
import inspect
import pathlib
import re
from unittest import mock

import pysyncobj
import pytest

from manager.raft import config as configs
from manager.raft import journal, library, membership
from skep import errors, ids
from tests.manager.raft import raft_cluster


def test_the_installed_release_is_one_that_was_tested() -> None:
    assert pysyncobj.syncobj.VERSION in library.TESTED
    library.verify()


def test_a_release_with_other_internals_is_refused_by_name() -> None:
    def other(self: object, node: object, message: object) -> None:
        """Reads differently."""

    target = pysyncobj.syncobj.SyncObj
    with (
        mock.patch.object(target, "_SyncObj__onMessageReceived", other),
        pytest.raises(errors.FailedPrecondition, match=r"_SyncObj__onMessageReceived.*install pysyncobj==0\.3\.17"),
    ):
        library.verify()


def test_every_private_method_and_field_that_we_rely_on_is_checked() -> None:
    """What a release could change under us: methods by their text, fields by the text of the constructor."""
    sources = pathlib.Path(library.__file__).parent.glob("*.py")
    used = {name for path in sources for name in re.findall(r"\b_SyncObj__\w+", path.read_text())}
    assert len(used) > 30
    constructor = inspect.getsource(pysyncobj.SyncObj.__init__)
    for name in used:
        if name not in library.DIGESTS:
            assert f"self.{name.removeprefix('_SyncObj')} = " in constructor, name
    assert all(library.digest(method) for method in library.DIGESTS)


def test_a_manager_does_not_start_on_a_release_with_other_internals(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        manager = raft_cluster.Cluster(tmp_path).new("a")
        with pytest.raises(errors.FailedPrecondition, match="install pysyncobj=="):
            await manager.start(bootstrap={"a": "127.0.0.1:1"})
        await manager.unplug()

    with mock.patch.dict(library.DIGESTS, {"_SyncObj__setState": "another text"}):
        asyncio.run(main())


def test_nodes_come_in_the_order_of_their_ids() -> None:
    nodes = library.SortedNodes(library.new_node(name) for name in ("c", "a", "b"))
    assert [node.id for node in nodes] == ["a", "b", "c"]
    assert [node.id for node in nodes | {library.new_node("aa")}] == ["a", "aa", "b", "c"]
    assert library.new_node("b") in nodes


def test_the_librarys_own_machinery_is_out_of_reach() -> None:
    made = membership.Membership(
        node_id="a", journal=journal.Journal(None), rng=ids.seeded_rng(1), times=configs.RaftConfig()
    )
    for forbidden in (made.doTick, made._checkCommandsToApply):
        with pytest.raises(errors.Bug):
            forbidden()
