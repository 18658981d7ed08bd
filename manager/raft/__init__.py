"""Consensus: PySyncObj as the core, with our own log, transport, clock and randomness around it."""
