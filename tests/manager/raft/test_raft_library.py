"""The door to PySyncObj: known releases only, deterministic order, and nothing of its own machinery runs."""

from unittest import mock

import pysyncobj
import pytest

from manager.raft import config as configs
from manager.raft import journal, library, membership
from skep import errors, ids


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
