"""One file per pipeline stage: input paths in, one output folder out. No Prefect, DVC or MLflow."""
