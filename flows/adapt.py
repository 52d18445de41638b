"""Stage adapt: self-training with mutual prototypical adaptation.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

adapt = stage_flow("adapt")

if __name__ == "__main__":
    main(adapt)
