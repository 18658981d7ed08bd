"""Ports of tasks on this machine."""
