"""The signal that ends a forward after the last tap."""

from __future__ import annotations


class Stop(BaseException):
    """Ends a forward of `owner`. Not an `Exception`, so that a model's own `except Exception` does not catch it."""

    def __init__(self, owner: object) -> None:
        super().__init__("layertap stops the forward after its last tap")
        self.owner = owner


def is_stop_of(owner: object, error: BaseException) -> bool:
    """Whether `error` is the stop of `owner`, or an exception that the model raised because of it."""
    reasons: list[BaseException] = [error]
    # The list grows during iteration, and an exception may be its own cause.
    for reason in reasons:
        if isinstance(reason, Stop):
            return reason.owner is owner
        reasons += [r for r in (reason.__cause__, reason.__context__) if r is not None and r not in reasons]
    return False
