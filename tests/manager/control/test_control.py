"""What the users' requests do to the store, and how they get on with other writers."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from manager.control import cluster, control, lookup, nodes, services
from manager.store import commit, ops, views
from skep import errors, jsonmap, pb
from tests.manager.http import fake_machine


def spec(name: str = "web", *, image: str = "nginx", replicas: int = 2) -> pb.ServiceSpec:
    made = pb.ServiceSpec(name=name)
    made.task.container.image = image
    made.mode.replicated.replicas = replicas
    return made


class Rig:
    """A founded cluster and the control over it."""

    def __init__(self, machine: fake_machine.FakeMachine) -> None:
        assert machine.manager is not None
        self.machine = machine
        self.manager = machine.manager
        self.committer = machine.manager.committer
        self.control = control.Control(
            state=self.manager.store, committer=self.committer, time=machine.clock, rng=machine.rng
        )

    @property
    def view(self) -> views.View:
        return self.manager.store.view()

    def service(self, name: str = "web") -> pb.Service:
        return lookup.service(self.view, name)

    async def change(self, changed: pb.ServiceSpec, *, version: int | None = None, auth: str = "") -> None:
        version = self.service().version.index if version is None else version
        await self.control.update_service("web", services.Update(spec=changed, version=version, registry_auth=auth))


def with_rig(work: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        machine = fake_machine.FakeMachine()
        await machine.found()
        rig = Rig(machine)
        await work(rig)
        rig.manager.store.verify()

    asyncio.run(main())


def test_create_stores_a_service_and_its_first_revision() -> None:
    async def work(rig: Rig) -> None:
        service_id = await rig.control.create_service(spec(), registry_auth="secret")
        service = rig.service()
        assert service.id == service_id
        assert (service.next_revision, service.previous_revision_id) == (2, "")
        revision = rig.view.revision(service.revision_id)
        assert (revision.number, revision.service_id) == (1, service_id)
        assert revision.spec.task.container.registry_auth == "secret"
        assert not service.HasField("update_status")

    with_rig(work)


def test_a_name_is_unique_without_regard_to_case_and_invented_when_missing() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        with pytest.raises(errors.AlreadyExists, match=r"name conflicts .*: service WEB already exists"):
            await rig.control.create_service(spec("WEB"))
        await rig.control.create_service(spec(""))
        assert [bool(row.name) for row in rig.view.services] == [True, True]

    with_rig(work)


def test_an_update_of_the_work_makes_a_revision_and_says_so() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        first = rig.service()
        await rig.change(spec(image="nginx:2"))
        second = rig.service()
        assert second.previous_revision_id == first.revision_id
        assert rig.view.spec(second).task.container.image == "nginx:2"
        assert second.version.index > first.version.index
        assert second.update_status.state == pb.UPDATE_STATE_UPDATING
        assert second.update_status.message == "update in progress"
        assert second.update_status.HasField("started_at")

    with_rig(work)


def test_the_same_specification_changes_nothing() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec(), registry_auth="secret")
        before, commits = rig.service(), rig.committer.commits
        bare = spec()
        await rig.change(bare)
        assert rig.service() == before
        assert rig.committer.commits == commits

    with_rig(work)


def test_scaling_and_labels_leave_the_update_status_alone() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        await rig.change(spec(replicas=5))
        assert not rig.service().HasField("update_status")
        labelled = spec(replicas=5)
        labelled.labels["a"] = "b"
        await rig.change(labelled)
        assert not rig.service().HasField("update_status")
        assert rig.service().next_revision == 4

    with_rig(work)


@pytest.mark.parametrize("scale", [True, False])
def test_a_paused_update_is_resumed_by_any_change_but_scaling(scale: bool) -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        paused = pb.Service()
        paused.CopyFrom(rig.service())
        paused.update_status.state = pb.UPDATE_STATE_PAUSED
        await rig.committer.commit([ops.update(paused)])
        changed = spec(replicas=9)
        if not scale:
            changed.update.parallelism = 2
        await rig.change(changed)
        wanted = pb.UPDATE_STATE_PAUSED if scale else pb.UPDATE_STATE_UPDATING
        assert rig.service().update_status.state == wanted

    with_rig(work)


def test_rollback_swaps_and_swaps_back() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        with pytest.raises(errors.FailedPrecondition, match="service web does not have a previous spec"):
            await rig.control.rollback_service("web", version=rig.service().version.index)
        await rig.change(spec(image="nginx:2"))
        for image in ("nginx", "nginx:2"):
            await rig.control.rollback_service("web", version=rig.service().version.index)
            service = rig.service()
            assert rig.view.spec(service).task.container.image == image
            assert service.update_status.state == pb.UPDATE_STATE_ROLLBACK_STARTED
            assert service.update_status.message == "manually requested rollback"

    with_rig(work)


REFUSED = [
    (spec("other"), 0, errors.Unimplemented, "renaming services is not supported"),
    (spec(image="x"), 1, errors.Conflict, "update out of sequence"),
    (spec(image="A B"), 0, errors.Invalid, 'ContainerSpec: "A B" is not a valid repository/tag'),
]


@pytest.mark.parametrize(("changed", "behind", "kind", "text"), REFUSED)
def test_refused_updates_change_nothing(
    changed: pb.ServiceSpec, behind: int, kind: type[errors.SkepError], text: str
) -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        before = rig.service()
        with pytest.raises(kind) as caught:
            await rig.change(changed, version=before.version.index - behind)
        assert str(caught.value) == text
        assert rig.service() == before

    with_rig(work)


def test_a_change_of_mode_is_refused() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        changed = spec()
        changed.mode.ClearField("mode")
        getattr(changed.mode, "global").SetInParent()
        with pytest.raises(errors.Unimplemented, match="service mode change is not allowed"):
            await rig.change(changed)

    with_rig(work)


def test_the_registry_password_is_kept_replaced_or_taken_from_before() -> None:
    def auth(rig: Rig) -> str:
        return rig.view.spec(rig.service()).task.container.registry_auth

    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec(), registry_auth="one")
        await rig.change(spec(image="a"), auth="two")
        await rig.change(spec(image="b"))
        assert auth(rig) == "two"
        await rig.change(spec(image="c"), auth="three")
        version = rig.service().version.index
        await rig.control.update_service(
            "web", services.Update(spec=spec(image="d"), version=version, auth_from="previous-spec")
        )
        assert auth(rig) == "two"

    with_rig(work)


def test_lookup_prefers_ids_to_names_to_prefixes() -> None:
    async def work(rig: Rig) -> None:
        for service_id, name in (("abc1", "one"), ("abc2", "abc1x"), ("zzz", "abc")):
            operations = services.create(
                rig.view, spec(name), service_id=service_id, revision_id="r" + service_id, registry_auth="", now=1.0
            )
            await rig.committer.commit(operations)
        found = {ref: lookup.service(rig.view, ref).id for ref in ("abc1", "ABC", "abc2", "z", "abc1x")}
        assert found == {"abc1": "abc1", "ABC": "zzz", "abc2": "abc2", "z": "zzz", "abc1x": "abc2"}
        with pytest.raises(errors.Invalid, match=r"service ab is ambiguous \(2 matches found\)"):
            lookup.service(rig.view, "ab")
        for unknown in ("", "on", "nope"):
            with pytest.raises(errors.NotFound, match=f"service {unknown} not found"):
                lookup.service(rig.view, unknown)

    with_rig(work)


def test_decided_anew_when_another_writer_was_faster() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        rig.committer.problems.append(errors.Conflict("update out of sequence"))
        await rig.change(spec(replicas=3))
        assert rig.view.spec(rig.service()).mode.replicated.replicas == 3

    with_rig(work)


def test_leadership_lost_midway_is_an_unknown_outcome_and_before_it_none() -> None:
    async def work(rig: Rig) -> None:
        rig.committer.problems.append(errors.Unavailable("lost the lead"))
        with pytest.raises(control.OutcomeUnknown, match="may or may not have been made"):
            await rig.control.create_service(spec())
        rig.committer.problems.append(commit.NotProposed("queue full"))
        with pytest.raises(commit.NotProposed):
            await rig.control.create_service(spec())
        rig.committer.is_leader = False
        with pytest.raises(commit.NotProposed):
            await rig.control.remove_service("web")
        rig.committer.is_leader = True
        rig.committer.barriers.append(errors.Unavailable("no quorum"))
        with pytest.raises(commit.NotProposed):
            await rig.control.remove_service("web")

    with_rig(work)


def test_node_update_and_its_refusals() -> None:
    async def work(rig: Rig) -> None:
        async def update(reference: str, wished: pb.NodeSpec, *, version: int) -> None:
            members = dict.fromkeys(rig.manager.standing, True)
            await rig.control.update_node(reference, wished, version=version, members=members)

        node = lookup.node(rig.view, "n1")
        wished = pb.NodeSpec(availability=pb.NODE_AVAILABILITY_DRAIN, labels={"disk": "ssd"}, name="blue")
        await update("n1", wished, version=node.version.index)
        assert lookup.node(rig.view, "blue").spec == wished
        with pytest.raises(errors.Conflict):
            await update("n1", pb.NodeSpec(), version=node.version.index)
        other = lookup.node(rig.view, "n2")
        with pytest.raises(errors.AlreadyExists, match="node blue already exists"):
            await update("n2", pb.NodeSpec(name="blue"), version=other.version.index)
        manager = lookup.node(rig.view, "n0")
        with pytest.raises(errors.FailedPrecondition, match="attempting to demote the last manager of the swarm"):
            await update("n0", pb.NodeSpec(), version=manager.version.index)
        await update("n2", pb.NodeSpec(role=pb.NODE_ROLE_MANAGER), version=other.version.index)
        promoted = lookup.node(rig.view, "n2")
        assert (promoted.spec.role, promoted.role) == (pb.NODE_ROLE_MANAGER, pb.NODE_ROLE_WORKER)
        with pytest.raises(errors.FailedPrecondition, match="the last manager"):  # the other one is no member yet
            await update("n0", pb.NodeSpec(), version=manager.version.index)
        await update("n2", pb.NodeSpec(), version=promoted.version.index)  # taken back before it came about

    with_rig(work)


LOST = "can't remove member from the raft: this would result in a loss of quorum"
LAST = "attempting to demote the last manager of the swarm"
DEMOTIONS = [
    # members and whether they answer, those whose demotion is under way, the one to demote, refusal
    ({"n0": True}, (), "n0", LAST),
    ({"n0": True, "n1": True}, (), "n1", ""),
    ({"n0": True, "n1": False}, (), "n1", ""),
    ({"n0": True, "n1": False}, (), "n0", LOST),
    ({"n0": True, "n1": True, "n2": False}, (), "n1", LOST),
    ({"n0": True, "n1": True, "n2": False}, (), "n2", ""),
    ({"n0": True, "n1": True, "n2": True}, (), "n0", ""),
    ({"n0": True, "n1": True, "n2": True}, ("n1",), "n0", ""),
    ({"n0": True, "n1": True, "n2": True}, ("n1", "n2"), "n0", LAST),
    ({"n0": True}, (), "n1", ""),  # promoted, and never came
]


@pytest.mark.parametrize(("members", "leaving", "name", "refusal"), DEMOTIONS)
def test_demotions_that_cost_the_quorum_are_refused(
    members: dict[str, bool], leaving: tuple[str, ...], name: str, refusal: str
) -> None:
    async def work(rig: Rig) -> None:
        ids_of = {node.description.hostname: node.id for node in rig.view.nodes}
        for hostname, node_id in ids_of.items():
            changed = pb.Node()
            changed.CopyFrom(lookup.node(rig.view, node_id))
            changed.role = pb.NODE_ROLE_MANAGER
            changed.spec.role = pb.NODE_ROLE_WORKER if hostname in leaving else pb.NODE_ROLE_MANAGER
            await rig.committer.commit([ops.update(changed)])
        node = lookup.node(rig.view, name)
        demoted = nodes.update(
            rig.view,
            name,
            pb.NodeSpec(),
            version=node.version.index,
            members={ids_of[hostname]: answers for hostname, answers in members.items()},
            now=0.0,
        )
        assert len(demoted) == 1

    if refusal:
        with pytest.raises(errors.FailedPrecondition, match=refusal):
            with_rig(work)
    else:
        with_rig(work)


def test_node_removal_gives_its_tasks_up() -> None:
    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec(replicas=6))
        await rig.machine.settle()
        node = lookup.node(rig.view, "n1")
        members = frozenset(rig.manager.standing)
        with pytest.raises(errors.FailedPrecondition, match=f"node {node.id} is not down and can't be removed"):
            await rig.control.remove_node("n1", force=False, members=members)
        with pytest.raises(errors.FailedPrecondition, match="It must be demoted to worker before removal"):
            await rig.control.remove_node("n0", force=True, members=members)
        mine = [task.id for task in rig.view.tasks.where("node", node.id)]
        assert mine
        await rig.control.remove_node("n1", force=True, members=members)
        for task_id in mine:
            task = rig.view.tasks.get(task_id)
            assert task is not None
            assert task.status.state == pb.TASK_STATE_ORPHANED
        await rig.machine.settle()
        running = [task for task in rig.view.tasks if task.status.state == pb.TASK_STATE_RUNNING]
        assert len(running) == 6

    with_rig(work)


def test_cluster_update_rotates_tokens_and_keeps_what_was_not_said() -> None:
    async def work(rig: Rig) -> None:
        before = rig.view.cluster
        wished = pb.ClusterSpec(name="default")
        wished.orchestration.task_history_retention_limit = 0
        await rig.control.update_cluster(
            cluster.Update(spec=wished, version=before.version.index, rotate_worker_token=True)
        )
        after = rig.view.cluster
        assert after.spec.orchestration.task_history_retention_limit == 0
        assert after.spec.dispatcher.heartbeat_period == 5_000_000_000
        assert after.spec.raft == before.spec.raft
        assert after.root_ca.worker_secret != before.root_ca.worker_secret
        assert after.root_ca.manager_secret == before.root_ca.manager_secret
        with pytest.raises(errors.Conflict):
            await rig.control.update_cluster(cluster.Update(spec=wished, version=before.version.index))

    with_rig(work)


@pytest.mark.parametrize(
    ("wished", "kind", "text"),
    [
        (pb.ClusterSpec(name="x"), errors.Invalid, "modification of cluster name is not allowed"),
        (
            pb.ClusterSpec(ca=pb.ClusterSpec.CAConfig(node_cert_expiry=1)),
            errors.Invalid,
            "minimum certificate expiry time is: 1h0m0s",
        ),
        (
            pb.ClusterSpec(encryption=pb.ClusterSpec.EncryptionConfig(auto_lock_managers=True)),
            errors.Unimplemented,
            "this version of skep cannot lock its managers",
        ),
    ],
)
def test_cluster_updates_that_are_refused(wished: pb.ClusterSpec, kind: type[errors.SkepError], text: str) -> None:
    async def work(rig: Rig) -> None:
        with pytest.raises(kind, match=text):
            await rig.control.update_cluster(cluster.Update(spec=wished, version=rig.view.cluster.version.index))

    with_rig(work)


def test_every_update_of_a_job_runs_it_again() -> None:
    async def work(rig: Rig) -> None:
        wished = spec("batch")
        wished.mode.ClearField("replicated")
        wished.mode.replicated_job.max_concurrent = 2
        await rig.control.create_service(wished)
        service = lookup.service(rig.view, "batch")
        assert rig.view.spec(service).mode.replicated_job.total_completions == 2
        assert jsonmap.to_json(service)["JobStatus"]["JobIteration"] == {}
        for iteration in (1, 2):  # also when nothing differs
            service = lookup.service(rig.view, "batch")
            request = services.Update(spec=rig.view.spec(service), version=service.version.index)
            await rig.control.update_service("batch", request)
            service = lookup.service(rig.view, "batch")
            assert service.job_status.job_iteration.index == iteration
            assert service.job_status.HasField("last_execution")
            assert not service.HasField("update_status")
        await rig.control.rollback_service("batch", version=service.version.index)
        service = lookup.service(rig.view, "batch")
        assert (service.job_status.job_iteration.index, service.HasField("update_status")) == (3, False)

    with_rig(work)


def test_a_rollback_and_the_reaper_never_miss_each_other() -> None:
    """Whoever comes second to a revision that one forgets and the other goes back to starts over."""

    async def work(rig: Rig) -> None:
        await rig.control.create_service(spec())
        for number in range(2, 5):
            await rig.change(spec(image=f"nginx:{number}"))
        oldest = next(each for each in rig.view.revisions if each.number == 1)
        version = rig.service().version.index

        forgotten = ops.delete(oldest)
        back = services.rollback(rig.view, "web", version=version, now=1.0, to=1)
        await rig.committer.commit(back)
        with pytest.raises(errors.Conflict):
            await rig.committer.commit([forgotten])
        assert rig.view.spec(rig.service()).task.container.image == "nginx"

        second = next(each for each in rig.view.revisions if each.number == 2)
        late = services.rollback(rig.view, "web", version=rig.service().version.index, now=2.0, to=2)
        await rig.committer.commit([ops.delete(second)])
        with pytest.raises(errors.Conflict):
            await rig.committer.commit(late)
        with pytest.raises(errors.NotFound, match="kept are 1, 3, 4"):
            await rig.control.rollback_service("web", version=rig.service().version.index, to=2)

    with_rig(work)
