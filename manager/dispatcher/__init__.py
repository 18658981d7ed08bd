"""Sessions of agents: liveness, assignments, statuses, logs."""
