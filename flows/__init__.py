"""Prefect flows: one thin file per stage; the only room that imports prefect.

Run one with ``python -m flows.<stage>`` in the project root.
"""

import os
import sys
from importlib.util import find_spec

from flows.proxies import make_usable
from panoda.system.machine import choose_waiting

# No telemetry. Prefect and MLflow read this before we could tell them otherwise; both understand "true".
os.environ.setdefault("DO_NOT_TRACK", "true")
# Read by Prefect, MLflow and every process that is started.
make_usable()
choose_waiting()  # read by OpenMP when torch is imported

if sys.argv[0] == "-m":  # python -m flows.<command>, which is not known yet
    from panoda.system.reporting import report

    if find_spec("prefect") is None:
        sys.exit(
            f"error: {sys.executable} has no prefect; use the project's own Python (.venv/bin/python, which "
            "`make setup` makes), or install panoda[pipeline]"
        )
    if "--debug" not in sys.argv:
        # What fails before a command handles its own errors, such as Prefect over a setting of the user's.
        sys.excepthook = lambda kind, error, trace: report(error, "flows")
