"""Tables of expressions."""

import gc
import weakref

from policyd.core.lookups import ExpressionTable
from policyd.core.tables import Hits


def test_expressions_see_invalid_utf_8_as_the_replacement_character() -> None:
    hits = tuple(Hits(frozenset({place}), ()) for place in range(3))
    table = ExpressionTable(("^a.b$", "\ufffd", "^$"), hits)
    assert table.find(b"A\xffB").conditions == {0, 1}
    assert table.find(b"\xed\xa0\x80").conditions == {1}
    assert table.find(b"").conditions == {2}
    assert table.find(b"a\xc3\xa9b").conditions == {0}


def test_five_thousand_expressions_are_one_set() -> None:
    patterns = tuple(rf"^host-[0-9]+-{number}\.dyn{number}\.example\.net$" for number in range(5000))
    table = ExpressionTable(patterns, tuple(Hits(frozenset({number}), ()) for number in range(5000)))
    for number in (0, 17, 4999):
        assert table.find(b"HOST-12-%d.dyn%d.example.net" % (number, number)).conditions == {number}
    assert table.find(b"host-12-5000.dyn5000.example.net").conditions == frozenset()


def test_equal_expressions_are_compiled_once_and_freed_after_use() -> None:
    expressions = ("^once-compiled$",)
    table, again = (ExpressionTable(expressions, (Hits(frozenset({n}), ()),)) for n in range(2))
    assert table._set is again._set
    assert table.find(b"once-compiled").conditions == {0}
    assert again.find(b"once-compiled").conditions == {1}
    expression_set = weakref.ref(table._set)
    del table, again
    gc.collect()
    assert expression_set() is None
