"""What exists: values without files, schedulers or windows."""
