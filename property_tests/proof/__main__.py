"""Explore the trees, and print how much that was."""

from __future__ import annotations

import time

from .explore import Member, Tree, explore

TREES = (
    Tree("three submissions", 2, (Member(3),)),
    Tree("two and one submissions by two handles", 2, (Member(2), Member(1))),
    Tree("audits at any time", 2, (Member(2), Member(audits=2))),
    Tree("nested, beside another handle", 1, (Member(1, below=(1,)), Member(1))),
    Tree("lent on", 1, (Member(1, below=(1, 1)),)),
    Tree("ends that are not told", 2, (Member(3, blind=True),)),
    Tree("ends that are not told, nested", 1, (Member(2, below=(1,), blind=True),)),
    Tree("deaths that take two steps", 2, (Member(3),), slow=True),
    Tree("deaths that take two steps, nested", 1, (Member(2, below=(1,)),), slow=True),
    Tree("a fork at any time", 2, (Member(2, helpers=1),)),
    Tree("threads", 1, (Member(1, threads=(Member(1),)), Member(audits=1))),
    Tree("make's, nested", 2, (Member(1, below=(1,)), Member(1)), joined=True),
    Tree(
        "make's, ends that are not told, nested",
        1,
        (Member(2, below=(1,), blind=True),),
        joined=True,
    ),
    Tree("make's, deaths that take two steps", 2, (Member(3),), joined=True, slow=True),
    Tree("make's, a fork at any time", 2, (Member(2, helpers=1),), joined=True),
    Tree("a command beside a submission", 2, (Member(1), Member(commands=1))),
    Tree("two commands, which take as many bytes as they can", 2, (Member(commands=2, takes=2),)),
    Tree("commands of two handles", 2, (Member(commands=1), Member(commands=1))),
    Tree("a command of work, and audits", 2, (Member(1, inside=1), Member(audits=1))),
    Tree(
        "a command that lends its slot, beside submissions",
        1,
        (Member(commands=1, gives=2), Member(2)),
        kills=0,
    ),
    Tree(
        "commands that lend their slots",
        2,
        (Member(commands=1, gives=1), Member(commands=1, gives=1)),
        kills=0,
    ),
    Tree(
        "a command that lends its slot, kills",
        2,
        (Member(commands=1, gives=1), Member(1)),
        ends=False,
    ),
    Tree("nested, twice", 2, (Member(2, below=(1,)),)),
)


def main() -> None:
    for tree in TREES:
        start = time.monotonic()
        reach = explore(tree)
        print(
            f"{tree.name}, {tree.slots} slots: {reach.states} states, {reach.transitions} "
            f"transitions, {reach.idle} at rest, {reach.most} at once; "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
