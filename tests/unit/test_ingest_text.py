"""Markup out, text in: what a browser would show, on one line."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from offline.ingest.text import (
    MAX_DESCRIPTION_CHARACTERS,
    MAX_RAW_CHARACTERS,
    clean_description,
    clean_label,
    clean_title,
    strip_html,
)

WORDS = st.lists(st.text("abcXYZ09é", min_size=1, max_size=6), min_size=1, max_size=8)
MARKUP = st.text("<>/!?&;#=\"'-[] abpscriptyle\n\x00lgtx0\ud800", max_size=60)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Plain  title\n", "Plain title"),
        ("Tom &amp; Jerry&#39;s", "Tom & Jerry's"),
        ("one<br/>two<p>three</p>four", "one two three four"),
        ("<b>bold</b>er", "bolder"),
        ("<script>var x = '<b>no</b>';</script>yes<style>p {}</style>", "yes"),
        ("a<!-- hidden <b> -->b", "a b"),
        ("a <![foo[ b ]]> c", "a c"),
        ("twice &amp;lt;br&amp;gt; escaped", "twice escaped"),
        ("3 < 4 and 5 > 2", "3 < 4 and 5 > 2"),
        ("size\u200b L\u00a0wide", "size L wide"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("</span></span></span>", ""),
    ],
)
def test_markup_becomes_the_text_a_browser_would_show(raw: str, text: str) -> None:
    assert strip_html(raw) == text


@given(WORDS)
def test_words_between_tags_survive_in_order(words: list[str]) -> None:
    marked = "".join(f"<div class='x'><p>{word}</p><script>gone()</script></div>" for word in words)
    assert strip_html(marked) == " ".join(words)


@given(MARKUP)
@example("<![if !x]>y<![endif]>")
@example("&#xD800;")
def test_any_text_is_stripped_to_one_encodable_line(raw: str) -> None:
    text = strip_html(raw)
    text.encode("utf-8")
    assert text == " ".join(text.split())


@given(MARKUP)
def test_stripping_twice_changes_nothing_more(raw: str) -> None:
    assert strip_html(strip_html(raw)) == strip_html(raw)


def test_hostile_markup_takes_bounded_time() -> None:
    for piece in ("<!--", "&amp;", "<a ", "&amp;lt;", "<![", "<script>"):
        assert len(strip_html(piece * 1_000_000)) <= MAX_RAW_CHARACTERS


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "<br>",
        "--- !!! ---",
        "var aPageStart = (new Date()).getTime();",
        ".box { color: red; } function() {}",
        "word " * 1000,
    ],
)
def test_a_title_that_shows_nothing_is_none(raw: str) -> None:
    assert clean_title(raw) is None


def test_a_title_in_markup_is_kept_as_text() -> None:
    assert clean_title('<span class="a-size-large">Yoga Mat &amp; Strap</span>') == "Yoga Mat & Strap"


def test_a_long_description_is_cut_between_words() -> None:
    cut = clean_description("seven77 " * 2_000)
    assert cut is not None
    assert MAX_DESCRIPTION_CHARACTERS - 8 <= len(cut) <= MAX_DESCRIPTION_CHARACTERS
    assert cut.endswith("seven77")


def test_a_label_without_letters_is_none() -> None:
    assert clean_label("<b>-</b>") is None
