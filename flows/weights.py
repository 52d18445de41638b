"""Stage weights: pretrained weights for the model, from data/weights.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

weights = stage_flow("weights")

if __name__ == "__main__":
    main(weights)
