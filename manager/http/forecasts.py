"""Forecasts and explanations in JSON, under skep's own names. Decides nothing."""

from collections.abc import Iterable
from typing import Any

from manager.planning import explaining, forecast
from manager.planning import fields as differences
from manager.planning import gaps as planned_gaps
from skep import jsonmap, pb, stamps, tasknames

Json = dict[str, Any]

TASKS_SHOWN_MAX = 10_000  # of all services together; the counts are of all


def plan(found: forecast.Forecast, *, gaps: Iterable[planned_gaps.Gap] = ()) -> Json:
    """What a change would do, and what of it not without a gap."""
    left = TASKS_SHOWN_MAX
    shown: list[Json] = []
    for service in found.services:
        shown.append(_service(service, found.node_names, left))
        left -= len(shown[-1]["Tasks"])
    notes = list(found.notes)
    if left <= 0:
        notes.append(f"only the first {TASKS_SHOWN_MAX} tasks are listed")
    return {
        "Verdict": found.verdict.value,
        "AtRest": found.at_rest,
        "Complete": found.complete,
        "DurationSeconds": round(found.took_s, 3),
        "Notes": notes,
        "Fields": fields(found.fields),
        "Services": shown,
        "Gaps": gaps_of(gaps, found.node_names),
        "Nodes": [
            {"ID": node_id, "Name": found.node_names[node_id], "Before": before, "After": after}
            for node_id, (before, after) in found.node_tasks.items()
        ],
    }


def gaps_of(found: Iterable[planned_gaps.Gap], names: dict[str, str]) -> list[Json]:
    """Tasks that do not move without a gap."""
    return [
        {
            "TaskID": gap.task.id,
            "Name": gap.name,
            "NodeID": gap.node_id,
            "NodeName": names.get(gap.node_id, gap.node_id),
            "Why": gap.why,
            "Expected": gap.expected,
            **({} if gap.expected_s is None else {"ExpectedSeconds": round(gap.expected_s, 3)}),
        }
        for gap in found
    ]


def task_name(task: pb.Task) -> str:
    """The task as people name it: its service and slot; on every node only its service."""
    return f"{task.service_name}.{tasknames.place(task)}" if task.slot else task.service_name


def fields(found: Iterable[differences.Field]) -> list[Json]:
    """Differences of specifications."""
    return [
        {**({"Node": each.node} if each.node else {}), "Path": each.path, "Before": each.before, "After": each.after}
        for each in found
    ]


def _service(service: forecast.ServiceForecast, names: dict[str, str], limit: int) -> Json:
    shown: Json = {
        "ID": service.id,
        "Name": service.name,
        "Counts": {action.value: count for action in forecast.Action if (count := service.count(action))},
        "Running": service.running,
        "RunningLeast": service.running_least,
        "Tasks": [_outcome(outcome, names) for outcome in service.outcomes[: max(0, limit)]],
    }
    if service.status is not None:
        state = jsonmap.word_of(pb.UpdateState, service.status.state)
        shown["UpdateStatus"] = {"State": state, "Message": service.status.message}
    return shown


def _outcome(outcome: forecast.Outcome, names: dict[str, str]) -> Json:
    shown: Json = {
        "Slot": outcome.slot,
        "Place": outcome.place,
        "Action": outcome.action.value,
        "TaskID": outcome.task_id,
    }
    for key, node_id in (("From", outcome.source), ("To", outcome.target)):
        shown[key] = node_id
        shown[f"{key}Name"] = names.get(node_id, node_id)
    if outcome.reason:
        shown["Reason"] = outcome.reason
    return shown


def explanation(found: explaining.Explanation) -> Json:
    """Why something is as it is."""
    shown: Json = {
        "Kind": found.kind,
        "ID": found.id,
        "Name": found.name,
        "Summary": found.summary,
        "Waits": [_wait(each) for each in found.waits],
        "Nodes": [_verdict(each) for each in found.nodes],
        "Fix": found.fix,
    }
    if found.why_not:
        shown["WhyNot"] = found.why_not
    return shown


def _wait(wait: explaining.Wait) -> Json:
    shown: Json = {"Subject": wait.subject, "For": wait.reason}
    if wait.until is not None:
        shown["Until"] = jsonmap.format_time(stamps.stamp(wait.until))
    return shown


def _verdict(verdict: explaining.Verdict) -> Json:
    return {
        "ID": verdict.node_id,
        "Name": verdict.name,
        "Here": verdict.here,
        "Fits": not verdict.failing,
        "ServiceTasks": verdict.service_tasks,
        "Tasks": verdict.tasks,
        "Failing": [
            {"Rule": each.rule, "Need": each.need, "Have": each.have, "Remedy": each.remedy} for each in verdict.failing
        ],
    }
