"""Stage prototypes: mean features per class of both domains.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

prototypes = stage_flow("prototypes")

if __name__ == "__main__":
    main(prototypes)
