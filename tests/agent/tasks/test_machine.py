"""The task state machine over all situations: forward only, no spinning, the documented moves and no others."""

import dataclasses
import itertools
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtime import base
from agent.tasks import machine
from skep import errors, pb

Action = machine.Action
Phase = base.Phase
Situation = machine.Situation

AGENTS_STATES = list(machine.MOVES)
WISHES = [
    pb.TASK_STATE_READY, pb.TASK_STATE_RUNNING, pb.TASK_STATE_COMPLETE, pb.TASK_STATE_SHUTDOWN, pb.TASK_STATE_REMOVE,
]  # fmt: skip
OBSERVATIONS = [
    base.ABSENT,
    base.Observation(Phase.CREATED, container_id="c"),
    base.Observation(Phase.RUNNING, container_id="c"),
    base.Observation(Phase.RUNNING, health_checked=True),
    base.Observation(Phase.RUNNING, health_checked=True, healthy=True),
    base.Observation(Phase.RUNNING, health_checked=True, healthy=False),
    base.Observation(Phase.EXITED, exit_code=0),
    base.Observation(Phase.EXITED, exit_code=7),
    base.Observation(Phase.EXITED, exit_code=0, error="exec format error"),
    base.Observation(Phase.EXITED, exit_code=137, error="out of memory"),
]
COMPLETED = [None, Action.PREPARE, Action.START, Action.STOP, Action.REMOVE]

situations = st.builds(
    Situation,
    state=st.sampled_from(AGENTS_STATES),
    desired=st.sampled_from(WISHES),
    observation=st.sampled_from(OBSERVATIONS),
    completed=st.sampled_from(COMPLETED),
    failure=st.sampled_from(["", "no such image"]),
    verdict=st.sampled_from(["", *machine.VERDICTS]),
    lease_over=st.booleans(),
)


VERDICTS = [*itertools.product(["", *machine.VERDICTS], [False, True])]


def every_situation() -> list[Situation]:
    combined = itertools.product(AGENTS_STATES, WISHES, OBSERVATIONS, COMPLETED, ["", "bad"], VERDICTS)
    return [
        Situation(state=a, desired=b, observation=c, completed=d, failure=e, verdict=verdict, lease_over=over)
        for a, b, c, d, e, (verdict, over) in combined
    ]


def test_every_situation_has_a_step_along_the_table() -> None:
    seen: dict[tuple[machine.State, machine.State], None] = {}
    for situation in every_situation():
        step = machine.step(situation)
        assert step.state >= situation.state
        if step.state != situation.state:
            assert step.action is Action.NONE
            assert step.message or step.err
            seen[situation.state, step.state] = None
        else:
            assert step.action is not Action.NONE, situation  # else the driver would ask forever
    drawn = {(state, target) for state, moves in machine.MOVES.items() for target in moves}
    assert set(seen) == drawn  # no move in the table that never happens


@pytest.mark.parametrize("state", sorted(set(pb.TaskState.values()) - set(AGENTS_STATES)))
def test_states_that_are_not_the_agents_are_bugs(state: machine.State) -> None:
    with pytest.raises(errors.Bug):
        machine.step(Situation(state=state, desired=pb.TASK_STATE_RUNNING, observation=base.ABSENT))


def test_a_move_outside_the_table_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_decide", lambda now: machine.Step(pb.TASK_STATE_ACCEPTED, Action.NONE))
    with pytest.raises(errors.Bug, match="TASK_STATE_RUNNING to TASK_STATE_ACCEPTED"):
        machine.step(Situation(state=pb.TASK_STATE_RUNNING, desired=pb.TASK_STATE_RUNNING, observation=base.ABSENT))


@given(situations)
def test_a_task_that_is_wished_stopped_is_never_prepared_or_started(situation: Situation) -> None:
    if situation.desired >= pb.TASK_STATE_SHUTDOWN:
        assert machine.step(situation).action not in {Action.PREPARE, Action.START}


@given(situations)
def test_only_a_task_wished_removed_is_removed(situation: Situation) -> None:
    step = machine.step(situation)
    if step.action in {Action.REMOVE, Action.DONE}:
        assert situation.desired == pb.TASK_STATE_REMOVE
        assert situation.observation.phase is not Phase.RUNNING


@given(situations)
def test_nothing_starts_before_it_may(situation: Situation) -> None:
    step = machine.step(situation)
    if situation.desired == pb.TASK_STATE_READY and situation.state < pb.TASK_STATE_STARTING:
        assert step.state < pb.TASK_STATE_STARTING or step.state == pb.TASK_STATE_REJECTED
        assert step.action is not Action.START


class Simple:
    """A runtime in a few lines: every action succeeds."""

    def __init__(self, *, exits: int | None = None, health_checked: bool = False, healthy: bool | None = None) -> None:
        self.seen = base.ABSENT
        self.exits = exits
        self.health_checked = health_checked
        self.healthy = healthy

    def do(self, action: machine.Action) -> None:
        if action is Action.PREPARE and self.seen.phase is Phase.ABSENT:
            self.seen = base.Observation(Phase.CREATED, health_checked=self.health_checked)
        elif action is Action.START and self.seen.phase is Phase.CREATED:
            self.seen = dataclasses.replace(self.seen, phase=Phase.RUNNING, healthy=self.healthy)
            if self.exits is not None:
                self.seen = dataclasses.replace(self.seen, phase=Phase.EXITED, exit_code=self.exits)
        elif action is Action.STOP and self.seen.phase is Phase.RUNNING:
            self.seen = dataclasses.replace(self.seen, phase=Phase.EXITED, exit_code=143, healthy=None)
        elif action is Action.REMOVE:
            self.seen = base.ABSENT


def drive(
    runtime: Simple, desired: machine.State, *, state: machine.State = machine.ASSIGNED
) -> tuple[list[str], machine.Step]:
    """Runs to rest; returns the messages and errors on the way, and the last step."""
    said: list[str] = []
    completed: machine.Action | None = None
    verdict = ""
    for _ in range(50):
        situation = Situation(
            state=state, desired=desired, observation=runtime.seen, completed=completed, verdict=verdict
        )
        step = machine.step(situation)
        verdict = verdict or (step.err if step.err in machine.VERDICTS else "")
        said += [text for text in (step.message, step.err) if text]
        state, completed = step.state, None
        if step.action in {Action.WAIT, Action.DONE}:
            return said, step
        if step.action is not Action.NONE:
            runtime.do(step.action)
            completed = step.action
    raise AssertionError(f"no rest: {said}")


def test_the_way_of_a_task() -> None:
    runtime = Simple()
    said, step = drive(runtime, machine.READY)
    assert said == ["accepted", "preparing", "prepared"]
    said, step = drive(runtime, machine.RUNNING, state=step.state)
    assert said == ["starting", "started"]
    said, step = drive(runtime, machine.SHUTDOWN, state=step.state)
    assert said == ["shutdown"]
    said, step = drive(runtime, machine.REMOVE, state=step.state)
    assert (said, step.action, runtime.seen) == ([], Action.DONE, base.ABSENT)


@pytest.mark.parametrize(
    ("runtime", "state", "last"),
    [
        (Simple(exits=0), machine.COMPLETE, "finished"),
        (Simple(exits=2), machine.FAILED, "task: non-zero exit (2)"),
        (Simple(health_checked=True), machine.STARTING, "starting"),
        (Simple(health_checked=True, healthy=True), machine.RUNNING, "started"),
        (Simple(health_checked=True, healthy=False), machine.FAILED, "task: non-zero exit (143): unhealthy container"),
    ],
)
def test_how_tasks_end(runtime: Simple, state: machine.State, last: str) -> None:
    said, step = drive(runtime, machine.RUNNING)
    assert (step.state, said[-1]) == (state, last)


@given(
    st.lists(st.sampled_from(WISHES), min_size=1, max_size=5).map(sorted),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, True, False]),
)
def test_every_history_of_wishes_comes_to_rest(
    wishes: list[machine.State], exits: int | None, healthy: bool | None
) -> None:
    runtime = Simple(exits=exits, health_checked=healthy is not None, healthy=healthy)
    state: machine.State = machine.ASSIGNED
    for wish in wishes:
        _, step = drive(runtime, wish, state=state)
        assert step.state >= state
        state = step.state
        if wish >= machine.SHUTDOWN:
            assert state > machine.RUNNING
            assert runtime.seen.phase is not Phase.RUNNING
        if wish == machine.REMOVE:
            assert runtime.seen is base.ABSENT


def test_a_half_made_container_is_prepared_again() -> None:
    created = base.Observation(Phase.CREATED)
    situation = Situation(state=machine.PREPARING, desired=machine.RUNNING, observation=created)
    assert machine.step(situation).action is Action.PREPARE
    done = dataclasses.replace(situation, completed=Action.PREPARE)
    assert machine.step(done).state == machine.READY


def test_a_vanished_container_is_a_failure() -> None:
    for state, ends in ((machine.READY, machine.REJECTED), (machine.RUNNING, machine.FAILED)):
        assert machine.step(Situation(state=state, desired=machine.RUNNING, observation=base.ABSENT)).state == ends


def test_the_manual_shows_the_table() -> None:
    manual = pathlib.Path(__file__).parents[3] / "docs" / "task-states.md"
    assert f"```mermaid\n{machine.diagram()}```" in manual.read_text()


def test_a_jobs_task_is_wished_complete_and_runs_like_any_other() -> None:
    for observation in (base.ABSENT, base.Observation(Phase.CREATED), base.Observation(Phase.RUNNING)):
        for state in (machine.ACCEPTED, machine.READY, machine.STARTING, machine.RUNNING):
            steps = [
                machine.step(Situation(state=state, desired=desired, observation=observation))
                for desired in (pb.TASK_STATE_RUNNING, pb.TASK_STATE_COMPLETE)
            ]
            assert steps[0] == steps[1]


# ------------------------------------------------------------------ tasks that must never run twice


@given(situations)
def test_nothing_starts_without_a_lease(situation: Situation) -> None:
    if situation.lease_over:
        assert machine.step(situation).action is not Action.START
        assert machine.step(situation).state != machine.STARTING or situation.state == machine.STARTING


@pytest.mark.parametrize("state", [machine.STARTING, machine.RUNNING])
def test_what_runs_without_a_lease_is_stopped_and_fails_even_if_managers_are_heard_of_meanwhile(
    state: machine.State,
) -> None:
    running = base.Observation(Phase.RUNNING)
    step = machine.step(Situation(state=state, desired=machine.RUNNING, observation=running, lease_over=True))
    assert (step.action, step.err) == (Action.STOP, machine.LEASE_OVER)
    ended = base.Observation(Phase.EXITED, exit_code=0)
    for observation in (running, ended):
        step = machine.step(
            Situation(state=state, desired=machine.RUNNING, observation=observation, verdict=machine.LEASE_OVER)
        )
        assert step.err == machine.LEASE_OVER
    assert step.state == machine.FAILED


def test_what_is_ready_waits_for_a_lease() -> None:
    created = base.Observation(Phase.CREATED)
    waiting = Situation(state=machine.READY, desired=machine.RUNNING, observation=created, lease_over=True)
    assert machine.step(waiting) == machine.Step(machine.READY, Action.WAIT)
    renewed = dataclasses.replace(waiting, lease_over=False)
    assert machine.step(renewed).state == machine.STARTING
