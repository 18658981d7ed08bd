"""`override` for Python 3.11, which lacks typing.override; nothing is imported for it at run time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import override
else:
    _Method = TypeVar("_Method", bound=Callable[..., Any])

    def override(method: _Method) -> _Method:
        """Marks a method that replaces an inherited one; mypy checks that it does."""
        return method


__all__ = ["override"]
