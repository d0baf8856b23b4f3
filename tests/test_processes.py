"""What machines over real processes see of the kernel's."""

from __future__ import annotations

import pytest

from jobserver.testing import processes


def test_an_orphan_that_moves_up_meanwhile_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    children = {1: [2], 2: [3], 3: [4]}

    def children_of(pid: int) -> list[int]:
        if pid == 2:  # 3 ends just now, and 1 adopts
            children.update({1: [2, 4], 2: []})
        return children.get(pid, [])

    monkeypatch.setattr(processes, "children_of", children_of)
    assert processes.descendants_of(1) == {2, 4}
