"""The first error in a group."""

from __future__ import annotations

from p2pnode.errors import ChainError, StorageError, first_error, first_of_kind

CHAIN, STORAGE = ChainError("no answer"), StorageError("full")
NESTED = ExceptionGroup("outer", [ExceptionGroup("inner", [CHAIN]), STORAGE])


def test_the_first_error_is_found_however_deep_it_is() -> None:
    assert first_error(NESTED) is CHAIN
    assert first_error(STORAGE) is STORAGE


def test_the_first_of_a_kind_is_found_and_none_where_there_is_none() -> None:
    assert first_of_kind(NESTED, StorageError) is STORAGE
    assert first_of_kind(STORAGE, StorageError) is STORAGE
    assert first_of_kind(NESTED, KeyError) is None
