"""Programs that share memory between forked processes, and start with no resource tracker."""

from __future__ import annotations

import contextlib
import os
import time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

from jobserver import Jobserver
from tests.faces import face
from tests.work import PATIENCE

_SECONDS = 0.3  # for a tracker that should not be there to remove what it should not


def _buffer(block: SharedMemory) -> memoryview[int]:
    assert block.buf is not None, "it is open"
    return block.buf


def make() -> str:
    block = SharedMemory(create=True, size=64)
    _buffer(block)[0] = 7
    block.close()
    return block.name


def look(name: str) -> int:
    block = SharedMemory(name)
    value = _buffer(block)[0]
    block.close()
    return value


def unlink(name: str) -> None:
    block = SharedMemory(name)
    block.unlink()
    block.close()


def await_others() -> None:
    time.sleep(_SECONDS)


def made_in_work(name: str) -> None:
    """Memory that a worker makes is there when the worker has ended; nobody complains."""
    with face(name, "fork") as run:
        blocks = [run(make) for _ in range(2)]
        await_others()
        assert [look(block) for block in blocks] == [7, 7]
        assert [run(look, block) for block in blocks] == [7, 7]
    await_others()
    for block in blocks:
        unlink(block)


def lent_to_work(name: str) -> None:
    """Memory that the program makes survives the workers that attach to it."""
    with face(name, "fork") as run:
        run(abs, 1)
        block = make()
        for _ in range(2):
            assert run(look, block) == 7
            await_others()
        assert look(block) == 7
        unlink(block)


def nested_and_at_once(slots: int) -> None:
    """Work of work makes memory, in several processes at once: one tracker has it all."""

    def nest(js: Jobserver) -> list[str]:
        return [make(), *(each.result(PATIENCE) for each in [js(make) for _ in range(3)])]

    with Jobserver("fork", slots) as js:
        outer = [js(nest, js) for _ in range(3)]
        blocks = [block for future in outer for block in future.result(PATIENCE)]
        await_others()
        assert [look(block) for block in blocks] == [7] * 12
        for block in blocks:
            unlink(block)


def unlinked_elsewhere() -> None:
    """What one process makes and another removes is not looked for at the end."""
    with Jobserver("fork", 1) as js:
        block = js(make).result(PATIENCE)
        js(unlink, block).result(PATIENCE)


def left_behind() -> None:
    """What nobody removes is removed once the whole tree has ended."""
    with Jobserver("fork", 1) as js:
        os.write(1, js(make).result(PATIENCE).encode())


def killed_with_the_tree() -> None:
    """The same when the program is killed."""
    js = Jobserver("fork", 1)
    os.write(1, js(make).result(PATIENCE).encode())
    os._exit(0)


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing is closed by now
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def unused() -> None:
    """Who shares no memory has no tracker, and after the end no descriptor of it."""
    before = _descriptors()
    for _ in range(2):
        with Jobserver("fork", 2) as js:
            future = js(abs, -1)
            assert future.result(PATIENCE) == 1
            assert future.wait(PATIENCE)
        assert _descriptors() == before, _descriptors()
    tracker = vars(resource_tracker)["_resource_tracker"]
    assert tracker._fd is None
    # The program may have one later; it is multiprocessing's own.
    block = make()
    assert look(block) == 7
    unlink(block)
    assert tracker._pid is not None


def beside_spawn() -> None:
    """Spawned workers share the tracker of the forked ones."""
    with Jobserver("fork", 1) as forking, Jobserver("spawn", 1) as spawning:
        block = forking(make).result(PATIENCE)
        assert spawning(look, block).result(PATIENCE) == 7
        other = spawning(make).result(PATIENCE)
        await_others()
        assert (look(block), look(other)) == (7, 7)
        unlink(block)
        unlink(other)
