"""One small family of errors; each is also the builtin it stands for.

Every error says what is wrong and where in its message, and what to do about it in its remedy. The two are kept
apart because ``failures.csv`` lists them in columns of their own.
"""

from __future__ import annotations

from collections.abc import Iterable


class HistoquantError(Exception):
    """Something a user can act on.

    Parameters
    ----------
    message : str
        What is wrong and where, one sentence.
    remedy : str
        What to do about it, one sentence; may be empty.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InputError(HistoquantError, ValueError):
    """A value, table or command that cannot be used."""


class FormatError(HistoquantError, OSError):
    """A file that is not what its format promises, is damaged, or has no reader."""


class PixelSizeError(InputError):
    """An image whose pixel size is not known, so that nothing in um can be said about it."""


class RegionError(InputError):
    """Outlines that are empty, broken, off the slide, or that overlap without being declared."""


class RecipeError(InputError):
    """A recipe with an unknown key, a value out of bounds, or parts that do not fit together."""


class StudyError(InputError):
    """A sample sheet that cannot be used."""


class PluginError(HistoquantError, LookupError):
    """A reader, segmenter or rule that is missing, broken, or named twice."""


class MissingExtraError(PluginError, ImportError):
    """An optional part that is not installed."""


class StoreError(HistoquantError, OSError):
    """A run folder that cannot be written or does not belong to this run."""


class WorkerError(HistoquantError, RuntimeError):
    """A piece of work that was ended because it took too long or too much memory."""


class WorkerDiedError(WorkerError):
    """A piece of work whose process died: it may be to blame, or it may have been killed by chance."""


class WorkerMemoryError(WorkerError, MemoryError):
    """A piece of work that was ended because it took too much memory."""


class ClusterError(HistoquantError, RuntimeError):
    """A cluster profile that cannot be used, or a cluster that gives no workers."""


class Faults(InputError):
    """All faults of one input, collected and raised together.

    Parameters
    ----------
    faults : iterable of HistoquantError
        At least one.
    """

    def __init__(self, faults: Iterable[HistoquantError]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[Faults], tuple[tuple[HistoquantError, ...]]]:
        """Rebuild from the faults, not from the message, when sent to another process."""
        return type(self), (self.faults,)


def raise_all(faults: Iterable[HistoquantError]) -> None:
    """Raise the one fault as it is, several together as `Faults`; do nothing when there is none."""
    found = tuple(faults)
    if len(found) == 1:
        raise found[0]
    if found:
        raise Faults(found)
