"""A lab's own file format, segmenter and positivity rule for histoquant."""
