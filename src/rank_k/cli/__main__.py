"""Run the command as `python -m rank_k.cli`."""

import sys

from rank_k.cli import main

sys.exit(main())
