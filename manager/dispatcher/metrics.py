"""The dispatcher's figures in Prometheus' format."""

import prometheus_client


class Metrics:
    """Counters and gauges; in a registry of their own unless one is passed in."""

    def __init__(self, registry: prometheus_client.CollectorRegistry | None = None) -> None:
        registry = registry or prometheus_client.CollectorRegistry()
        self.sessions = prometheus_client.Gauge(
            "skep_dispatcher_sessions", "Open sessions of agents.", registry=registry
        )
        self.registrations = prometheus_client.Counter(
            "skep_dispatcher_registrations_total", "Sessions opened by agents.", registry=registry
        )
        self.postponed = prometheus_client.Counter(
            "skep_dispatcher_postponed_total", "Agents told to come back later: too many at once.", registry=registry
        )
        self.statuses = prometheus_client.Counter(
            "skep_dispatcher_statuses_total", "Task statuses from agents.", ["outcome"], registry=registry
        )
        self.assigned = prometheus_client.Counter(
            "skep_dispatcher_assigned_tasks_total", "Tasks sent to agents, changes included.", registry=registry
        )
        self.lost = prometheus_client.Counter(
            "skep_dispatcher_nodes_lost_total", "Nodes that were declared down.", registry=registry
        )
