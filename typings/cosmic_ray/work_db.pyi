from contextlib import AbstractContextManager

class MutationSpec:
    operator_name: str
    occurrence: int
    start_pos: tuple[int, int]
    definition_name: str | None

class WorkItem:
    mutations: tuple[MutationSpec, ...]

class WorkDB:
    work_items: tuple[WorkItem, ...]

def use_db(path: str) -> AbstractContextManager[WorkDB]: ...
