"""The pipeline: the table of stages, what a result depends on, and the files written from it."""
