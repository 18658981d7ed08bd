"""The agent: does. Nothing here decides where a task runs."""
