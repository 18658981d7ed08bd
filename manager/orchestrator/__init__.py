"""Decides which tasks should exist: replicas, restarts, updates, drain, reaping. Pure.

It writes desired state, and observed state only of tasks that no agent has been given. It never chooses a node.
"""
