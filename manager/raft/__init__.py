"""Consensus: PySyncObj as the Raft core, made safe; our durable log, snapshots and transports. Decides nothing."""
