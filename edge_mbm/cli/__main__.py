"""``python -m edge_mbm.cli``."""

import sys

from edge_mbm.cli import main

if __name__ == "__main__":
    sys.exit(main())
