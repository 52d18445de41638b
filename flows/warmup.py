"""Stage warmup: alignment of source and target before self-training.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

warmup = stage_flow("warmup")

if __name__ == "__main__":
    main(warmup)
