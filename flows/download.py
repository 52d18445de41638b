"""Stage download: raw files of a domain, rendered or used in place.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

download = stage_flow("download")

if __name__ == "__main__":
    main(download)
