"""How an update, a rollback or a move goes: the configuration with its defaults filled in."""

import dataclasses

from skep import pb, stamps

PARALLELISM_DEFAULT = 1  # only when the service has no update configuration at all
MONITOR_DEFAULT_S = 5.0

BACKWARD = (pb.UPDATE_STATE_ROLLBACK_STARTED, pb.UPDATE_STATE_ROLLBACK_PAUSED)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """How an update goes, with the defaults filled in."""

    parallelism: int  # 0 = all at once
    delay_s: float
    monitor_s: float
    action: pb.FailureAction.ValueType
    ratio: float
    order: pb.UpdateOrder.ValueType

    @property
    def watch_s(self) -> float:
        """How long the last slots are watched before the update is over."""
        return self.delay_s + 1.0 if self.delay_s >= self.monitor_s else self.monitor_s


def of(spec: pb.ServiceSpec, state: pb.UpdateState.ValueType) -> Settings:
    """The settings for an update in `state`: a rollback has its own."""
    backward = state in BACKWARD
    config = spec.rollback if backward else spec.update
    configured = spec.HasField("rollback") if backward else spec.HasField("update")
    return Settings(
        parallelism=config.parallelism if configured else PARALLELISM_DEFAULT,
        delay_s=stamps.from_nanos(config.delay),
        monitor_s=monitor_s(config),
        action=config.failure_action,
        ratio=config.max_failure_ratio,
        order=config.order,
    )


def monitor_s(config: pb.UpdateConfig) -> float:
    """For how long a new task has to run before it counts as healthy."""
    return stamps.from_nanos(config.monitor) if config.HasField("monitor") else MONITOR_DEFAULT_S
