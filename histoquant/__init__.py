"""histoquant: from a folder of microscope slides to numbers a lab can publish."""

__version__ = "0.1.0"
