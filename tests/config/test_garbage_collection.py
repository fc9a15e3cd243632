"""Turning off the garbage collector for a while."""

import gc

from policyd.config.garbage_collection import without_garbage_collection


def test_garbage_collection_is_restored_afterwards() -> None:
    assert gc.isenabled()
    with without_garbage_collection():
        assert not gc.isenabled()
        with without_garbage_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
