"""`python tests/sharded.py ARGS`: the rank-k command, its weights in shards over processes on one CPU.

accelerate shards over devices of their own alone; told that the processes of a CPU are such devices, it does the same
with them.
"""

from __future__ import annotations

import sys
from typing import Any

from rank_k.cli import main
from rank_k.optional_deps import load

state = load("accelerate.state")
_begin = state.PartialState.__init__


def _begun(self: Any, *args: Any, **options: Any) -> None:
    _begin(self, *args, **options)
    if self.distributed_type == state.DistributedType.MULTI_CPU:
        self.distributed_type = state.DistributedType.MULTI_GPU


if __name__ == "__main__":
    state.PartialState.__init__ = _begun
    sys.exit(main(sys.argv[1:]))
