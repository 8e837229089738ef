"""Results of a run in the forms of other programs."""

from histoquant.export.run import KINDS, export_run

__all__ = ["KINDS", "export_run"]
