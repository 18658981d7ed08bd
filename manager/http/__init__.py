"""The Docker-compatible HTTP API. The only place of the manager that imports aiohttp."""
