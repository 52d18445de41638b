"""Stage ssl_pretrain: the encoder learns from images without labels (nothing when ssl.method is none).

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

ssl_pretrain = stage_flow("ssl_pretrain")

if __name__ == "__main__":
    main(ssl_pretrain)
