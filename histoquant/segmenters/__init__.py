"""Built-in segmenters, plugged in exactly as a lab's own would be."""
