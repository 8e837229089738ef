"""The command line: thin; every command calls one function and prints what it gave."""

from histoquant.cli import study, image, spines, infarct, results, review, cluster  # noqa: F401, I001  their commands join the application, in this order
from histoquant.cli.app import app, main

__all__ = ["app", "main"]
