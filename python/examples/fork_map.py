"""Forks 50 workers of a running VM and maps a function over them: fork_map.py SOURCE"""

import sys

from mitose import Mitose


def square(worker: str, number: int) -> int:
    """Runs in the worker's guest, in memory that all of them share with their source."""
    return int(mitose.exec(worker, ["sh", "-c", f"echo $(({number} * {number}))"]).stdout)


with Mitose() as mitose:
    with mitose.workers(sys.argv[1], count=50) as workers:
        squares = mitose.map(square, workers, range(200))

assert squares == [number * number for number in range(200)]
print(f"{len(workers)} workers squared {len(squares)} numbers; their sum is {sum(squares)}")
