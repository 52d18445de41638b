"""Prefect flows: one thin file per stage; the only room that imports prefect.

Run one with ``python -m flows.<stage>`` in the project root.
"""

import os

# No telemetry. Prefect and MLflow read this before we could tell them otherwise; both understand "true".
os.environ.setdefault("DO_NOT_TRACK", "true")
