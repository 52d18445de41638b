"""Training methods, one file each: parameters, task, registration."""
