"""Stage pseudo_labels: labels for the target's training images.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

pseudo_labels = stage_flow("pseudo_labels")

if __name__ == "__main__":
    main(pseudo_labels)
