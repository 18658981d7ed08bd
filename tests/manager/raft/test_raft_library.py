"""The door to PySyncObj: known releases only, deterministic order, and nothing of its own machinery runs."""

import asyncio
import inspect
import pathlib
import re
import sys
import tomllib
import types
from unittest import mock

import pysyncobj
import pytest

from manager.raft import config as configs
from manager.raft import core, journal, library, membership, memory_transport
from skep import errors, ids
from tests import virtual_time
from tests.manager.raft import raft_cluster, raft_memory


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


def test_what_they_call_is_checked_as_well() -> None:
    target = pysyncobj.SyncObj
    replaced = {name for name in vars(core.RaftCore) if name in library.DIGESTS}
    for base in core.RaftCore.__mro__:
        if base is target:
            break
        replaced |= {name for name in vars(base) if name in library.DIGESTS and name != "__init__"}
    assert "_SyncObj__sendAppendEntries" in replaced
    for method in sorted(set(library.DIGESTS) - replaced):
        for called in re.findall(r"self\.(_{0,2}\w+)\(", inspect.getsource(getattr(target, method))):
            name = f"_SyncObj{called}" if called.startswith("__") else called
            assert name in library.DIGESTS or not callable(getattr(target, name, None)), f"{method} calls {name}"


def test_nothing_of_the_library_runs_that_is_not_checked() -> None:
    """Beside SyncObj's methods, too, while managers start, elect, commit, change members and hand over."""
    ran: dict[str, None] = {}

    def watch(frame: types.FrameType, event: str, _: object) -> None:
        path = pathlib.Path(frame.f_code.co_filename)
        if event == "call" and path.parent.name == "pysyncobj":
            ran[path.stem] = None

    async def main() -> None:
        async with raft_memory.running(memory_transport.MemoryNetwork(), configs.RaftConfig()) as world:
            _, leader = raft_memory.leader(world)
            await leader.commit([raft_cluster.create("one")])
            newcomer = world.new_manager()
            await newcomer.start(join=leader.members())
            await leader.add_member(newcomer.name, newcomer.addr)
            await leader.remove_member(newcomer.name)
            await leader.transfer_leadership()

    sys.setprofile(watch)
    try:
        virtual_time.run(main)
    finally:
        sys.setprofile(None)
    assert set(ran) == set(library.MODULES)


@pytest.mark.parametrize("module", sorted(library.MODULES))
def test_a_release_with_another_module_is_refused_by_name(module: str) -> None:
    library.verify()  # what each of the real ones reads is remembered
    other = types.ModuleType(f"pysyncobj.{module}")
    with (
        mock.patch.dict(sys.modules, {f"pysyncobj.{module}": other}),
        mock.patch.object(inspect, "getsource", return_value="reads differently"),
        pytest.raises(errors.FailedPrecondition, match=f"differs.* module {module}"),
    ):
        library.verify()


def test_the_package_asks_for_the_release_that_was_tested() -> None:
    settings = tomllib.loads((pathlib.Path(library.__file__).parents[2] / "pyproject.toml").read_text())
    (asked,) = (each for each in settings["project"]["dependencies"] if each.startswith("pysyncobj"))
    assert asked in [f"pysyncobj=={version}" for version in library.TESTED]


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
