"""Stage evaluate: every model on source val and target test.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

evaluate = stage_flow("evaluate")

if __name__ == "__main__":
    main(evaluate)
