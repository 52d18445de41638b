"""Stage rounds: second and later rounds (nothing when rounds is 1).

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

rounds = stage_flow("rounds")

if __name__ == "__main__":
    main(rounds)
