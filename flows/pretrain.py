"""Stage pretrain: training on the labelled sources.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

pretrain = stage_flow("pretrain")

if __name__ == "__main__":
    main(pretrain)
