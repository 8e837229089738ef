"""Doors for files: slides (TIFF, OME-Zarr, pictures, vendor formats) and outlines."""
