"""`python tests/support/sharded.py ARGS`: the rank-k command, its weights in shards over processes on one CPU.

accelerate shards over devices of their own alone; told that the processes of a CPU are such devices, it does the same
with them.
"""

from __future__ import annotations

import sys
from typing import Any

from rank_k.cli import main
from rank_k.optional_deps import load

state = load("accelerate.state")
_original_init = state.PartialState.__init__


def _init_as_multi_gpu(self: Any, *args: Any, **options: Any) -> None:
    _original_init(self, *args, **options)
    if self.distributed_type == state.DistributedType.MULTI_CPU:
        self.distributed_type = state.DistributedType.MULTI_GPU


if __name__ == "__main__":
    state.PartialState.__init__ = _init_as_multi_gpu
    sys.exit(main(sys.argv[1:]))
