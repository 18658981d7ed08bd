"""Which tasks should exist: creation, replacement, restarts, rolling updates, history. Pure."""
