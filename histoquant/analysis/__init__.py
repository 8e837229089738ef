"""What is done: pure functions from arrays and tables to arrays and tables."""
