"""What stops a run: a bad image, too many of them, or values that are not finite."""

from __future__ import annotations

from layertap.config.model import RunConfig
from layertap.errors import ImageError
from layertap.pipeline.shards import nonfinite
from layertap.records import Activations, Failure, RunInfo
from layertap.store.commits import Commit
from layertap.store.tally import Tally

# A share of a small plan would stop a run at its first bad file.
_FEWEST_FAILURES = 100


def refuse_too_many(config: RunConfig, info: RunInfo, tally: Tally) -> None:
    """Raise `ImageError` where more images have failed than `max_failures` allows."""
    most = config.max_failures
    most = most if isinstance(most, int) else max(_FEWEST_FAILURES, int(most * info.planned))
    if tally.failed > most:
        reason = f"stopped: {tally.failed} images failed, and max_failures allows {most}"
        raise ImageError("max_failures", "; ".join([reason, *map(str, tally.causes.counted()[:1])]))


def refused(failure: Failure) -> ImageError:
    """The error that ends a run at a bad image."""
    what = f"{failure.record.id!r} cannot be used: {failure.reason} ({failure.stage})"
    return ImageError(failure.reason, f"{what}: {failure.cause}" if failure.cause else what)


def refuse_nonfinite(activations: Activations) -> None:
    """Raise `ImageError` for the first image with a value that is NaN or infinite."""
    for name, values in activations.values.items():
        if nonfinite(values):
            row = next(row for row in range(len(values)) if nonfinite(values[row]))
            raise _nonfinite(name, nonfinite(values[row]), repr(activations.records[row].id))


def refuse_nonfinite_shard(record: Commit) -> None:
    """Raise `ImageError` for the first tap of a shard with values that are NaN or infinite."""
    for name, count in record.nonfinite.items():
        if count:
            raise _nonfinite(name, count, f"images of shard {record.shard}")


def _nonfinite(tap: str, count: int, what: str) -> ImageError:
    said = f"stopped: tap {tap!r} gave {count} values that are NaN or infinite for {what}, and nonfinite is `fail`"
    return ImageError("nonfinite", said)
