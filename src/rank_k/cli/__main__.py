"""`python -m rank_k.cli`: the command, where its script is not on the path."""

import sys

from rank_k.cli import main

sys.exit(main())
