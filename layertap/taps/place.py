"""A thread, and within it an asyncio task: where a model is called."""

from __future__ import annotations

from contextvars import ContextVar

_MARK: ContextVar[None] = ContextVar("layertap_place")


class Place:
    """The context in which it was created: one thread, and within it one task.

    A task started inside this one, and a thread given a copy of its context, are different places.
    """

    def __init__(self) -> None:
        self._token = _MARK.set(None)

    def is_here(self) -> bool:
        """Whether the caller runs in this place."""
        # A token can reset its variable only in the context that it comes from, not even in a copy of that context.
        try:
            _MARK.reset(self._token)
        except (RuntimeError, ValueError):
            return False
        self._token = _MARK.set(None)
        return True
