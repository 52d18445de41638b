"""Stage report: one self-contained page.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

report = stage_flow("report")

if __name__ == "__main__":
    main(report)
