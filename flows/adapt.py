"""Stage adapt: adaptation to the target by the method of section adapt.

Written by ``make pipeline``.
"""

from flows.command import main
from flows.factory import stage_flow

adapt = stage_flow("adapt")

if __name__ == "__main__":
    main(adapt)
