"""Gives tasks and services what they need before a node is chosen: today nothing, later addresses. Pure."""
