"""`python -m benches`: see `benches.run`."""

import sys

from benches.run import main

if __name__ == "__main__":
    sys.exit(main())
