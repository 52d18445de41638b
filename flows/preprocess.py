"""Stage preprocess: raw files to index and shards.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

preprocess = stage_flow("preprocess")

if __name__ == "__main__":
    main(preprocess)
