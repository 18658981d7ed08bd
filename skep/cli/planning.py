"""Whether --plan was given, and with what. Declares nothing and asks nothing."""

from collections.abc import Mapping
from typing import Any

import click


def wanted(given: Mapping[str, Any]) -> bool:
    """Whether to show a plan and change nothing. Raises UsageError for flags that go with --plan only."""
    if given.get("json") and not given.get("plan"):
        raise click.UsageError("--json prints a plan: add --plan")
    return bool(given.get("plan"))
