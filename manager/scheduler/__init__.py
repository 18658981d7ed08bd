"""Chooses a node for every task that waits for one, and explains why it cannot. Pure."""
