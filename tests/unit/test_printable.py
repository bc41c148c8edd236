"""No text of a stranger reaches a terminal, a page or a label as it is."""

from hypothesis import example, given
from hypothesis import strategies as st

from agent.printable import encodable, printable

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=())) | st.binary()


@given(ANY_TEXT)
@example("\x1b]0;title\x07")
@example("a\nb\u2028c\u202ed\x9be\udcff\ud800")
def test_nothing_invisible_is_left_and_any_encoder_takes_it(text: str | bytes) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()


@given(ANY_TEXT, st.integers(3, 60))
def test_the_limit_holds_after_escaping(text: str | bytes, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    if len(printable(text)) <= limit:
        assert shown == printable(text)


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_what_is_only_made_encodable_is_taken_by_any_encoder(text: str) -> None:
    encodable(text).encode()


def test_text_stays_readable() -> None:
    assert printable("redis-server ünï 試 \\") == "redis-server ünï 試 \\"
    assert printable("a\tb\r\n") == "a\\tb\\r\\n"
    assert printable("\x1b[31m\x7f") == "\\x1b[31m\\x7f"
    assert printable("\u202e\U000e0001") == "\\u202e\\U000e0001"


def test_bytes_that_were_no_text_keep_their_value() -> None:
    name = b"evil\xff\xfe".decode("utf-8", "surrogateescape")
    assert printable(name) == printable(b"evil\xff\xfe") == encodable(name) == "evil\\xff\\xfe"


def test_what_was_cut_off_shows() -> None:
    assert printable("x" * 10, 6) == "xxx..."
    assert printable("x" * 6, 6) == "xxxxxx"
