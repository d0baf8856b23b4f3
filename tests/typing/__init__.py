"""Programs for type checkers only: what `assert_type` says here, mypy and pyright must see.

A line that must be an error carries the expected error as an ignore; where the error is lost, the
ignore is unnecessary, and that is an error, too.
"""
