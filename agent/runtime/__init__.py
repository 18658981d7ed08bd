"""The driver interface and its drivers: docker, process, memory."""
