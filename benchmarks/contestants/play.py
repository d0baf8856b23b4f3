"""One contestant in a process of its own: `play.py MODULE.MEASURE ARGUMENTS`.

A measure is a context manager that yields one round; a round answers with its samples by name.
An empty line tells that it is made; then one runs for every byte on the standard input, and is
printed as a line of JSON. Start methods other than fork import this file in every worker, so it
imports nothing until it runs as a program.
"""

from __future__ import annotations

if __name__ == "__main__":
    import importlib
    import json
    import os
    import sys

    module, measure = sys.argv[1].split(".")
    make_round = getattr(importlib.import_module(module), measure)
    with make_round(**json.loads(sys.argv[2])) as one_round:
        print(flush=True)
        # Not by sys.stdin: a pool's thread may fork while this one waits, and the child closes
        # sys.stdin, whose lock would then be taken for ever.
        while os.read(0, 1):
            print(json.dumps(one_round()), flush=True)
