"""Count the statements of the package: `make count`.

A statement is any `ast.stmt` but a docstring, so that comments, docstrings and formatting do not count.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "rank_k"


def statements(source: str) -> int:
    """Return the number of statements in Python source code, docstrings left out."""
    return sum(isinstance(node, ast.stmt) and not _is_docstring(node) for node in ast.walk(ast.parse(source)))


def _is_docstring(node: ast.stmt) -> bool:
    """Return whether `node` is a string by itself: the docstring of a module, class, function or variable."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.code_size", description=__doc__)
    parser.add_argument("--largest", type=int, default=10, metavar="N", help="list the N largest files (default: 10)")
    args = parser.parse_args()
    per_package: Counter[str] = Counter()
    files: Counter[str] = Counter()
    per_file: dict[str, tuple[int, int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        name = path.relative_to(PACKAGE)
        package = name.parts[0] if len(name.parts) > 1 else "(top level)"
        count = statements(source)
        per_package[package] += count
        files[package] += 1
        per_file[str(name)] = (source.count("\n"), count)
    print(f"{'package':<16}{'files':>7}{'statements':>12}")
    for package, count in per_package.most_common():
        print(f"{package:<16}{files[package]:>7}{count:>12,}")
    print(f"{'total':<16}{files.total():>7}{per_package.total():>12,}\n")
    print(f"{'largest files':<44}{'lines':>7}{'statements':>12}")
    for file, (lines, count) in sorted(per_file.items(), key=lambda item: -item[1][0])[: args.largest]:
        print(f"{file:<44}{lines:>7,}{count:>12,}")


if __name__ == "__main__":
    main()
