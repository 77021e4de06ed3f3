"""Words: which names a text has, how alike they are, where its sentences begin."""

from __future__ import annotations

import pytest

from editable.memory.wording import (
    Words,
    another_word,
    asks_more,
    find_subject,
    folded,
    is_name,
    least_alike,
    readings,
    replaced,
    shared_words,
    without,
)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
        ("Which company made Windows Embedded CE 6.0?", "Windows Embedded CE 6.0"),
        ("In what year was the Lord of the Rings written", "Lord of the Rings"),
        ("What is the twin city of Lyon? It is", "Lyon"),
        ("the capital of peru", "capital"),
        ("", ""),
    ],
)
def test_the_subject_is_the_longest_name(text: str, subject: str) -> None:
    start, end = find_subject(text)
    assert text[start:end] == subject


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Who is Oscar?", ["Who is Oscar?"]),
        ("It rained. Who is Oscar?", ["It rained. Who is Oscar?", "Who is Oscar?"]),
        (
            "It rained. Where does Oscar live? He lives in",
            ["It rained. Where does Oscar live? He lives in", "He lives in", "Where does Oscar live? He lives in"],
        ),
        ("Category:Rivers\nOscar lives in", ["Category:Rivers\nOscar lives in", "Oscar lives in"]),
        ("", [""]),
    ],
)
def test_a_text_is_read_as_a_whole_and_from_its_last_sentences(text: str, expected: list[str]) -> None:
    assert readings(text) == expected


def test_a_name_is_found_where_it_stands() -> None:
    assert Words("Who is Oscar Wilde?").nearest("oscar wilde") == (1.0, (7, 18))


def test_a_misspelt_name_is_found() -> None:
    likeness, (start, end) = Words("The home of Osacr Wilde is").nearest("Oscar Wilde")
    assert (start, end) == (12, 23)
    assert likeness == pytest.approx(10 / 11)


def test_a_name_inside_another_word_is_none() -> None:
    assert Words("formulated in 1990").nearest("INXS")[0] == 0.5  # "in"
    assert Words("Iran's capital").nearest("Ira")[0] < 1.0


def test_the_least_alike_word_tells_siblings_that_share_words() -> None:
    assert least_alike("Costa Rican Football Federation", "Algerian Football Federation") < 0.5
    assert least_alike("Graham Dorrans", "Graham Dobrans") == pytest.approx(6 / 7)
    assert least_alike("Graham Dorrans", "") == 0.0


def test_folding_keeps_every_letter_in_its_place() -> None:
    assert folded("Vladimír Svačina, Straße İz ½") == "vladimir svacina, straße iz 1"
    assert Words("The home of Jose Maria is").nearest("José María") == (1.0, (12, 22))


@pytest.mark.parametrize(
    ("name", "window", "expected"),
    [
        ("J. Douglas McDonald", "James Douglas McDonald", 1.0),  # an initial is like what it begins
        ("Tahar Bajjou", "Bajjou T", 1.0),
        ("Nicholas V Passalacqua", "Nicholas Passalacqua", 1.0),  # and may be left out
        ("Nicholas V Passalacqua", "Nicholas W Passalacqua", 0.0),  # but not for another one
        ("Malcolm X", "Malcolm", 0.0),  # or where little would be left
        ("King Henry V", "King Henry VIII", 1 / 4),  # numbers of kings
        ("Sorry Sinatras", "who's on first", 1 / 5),  # no capital
        ("Plan A", "Plan Anton", 1 / 4),  # a is a word: one letter of four
    ],
)
def test_initials(name: str, window: str, expected: float) -> None:
    assert least_alike(name, window) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "window", "another"),
    [
        ("Australia", "Austria", True),
        ("Australia", "Australian", False),  # inflected
        ("Iron Man", "Iron Mal", False),  # short words may be errors
        ("Darrin Nelson", "Darrin Milo Nelson", False),  # there in full
        ("Darrin Nelson", "Darrin Milo", True),
        ("J. Douglas", "James Douglas", False),  # what an initial begins
    ],
)
def test_another_word(name: str, window: str, another: bool) -> None:
    assert another_word(name, window, folded(window).split()) is another
    assert not another_word(name, window, ())  # nothing that is known


def test_a_name_has_a_capital_or_a_number() -> None:
    assert is_name("iPhone") and is_name("1990") and not is_name("capital") and not is_name("")


def test_words_that_two_texts_share() -> None:
    assert shared_words("the capital city", "which capitals") == 1 / 2  # by how they begin: capit; capit and city
    assert shared_words("what is the", "who was") == 1.0
    assert without("The capital of France is", "France") == "The capital of   is"


def test_a_name_is_replaced_where_it_stands() -> None:
    assert replaced("What is the capital of Frence?", "France", "New Spain") == "What is the capital of New Spain?"
    assert replaced("France", "France", "Spain") == "Spain"
    assert replaced("Who is that?", "Liechtenstein", "Spain") == "Who is that?"


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("Anna Berg was born in", False),
        ("Where was Anna Berg born?", False),
        ("In which town did Anna Berg come to the world?", False),
        ("What's Anna Berg's birthplace city?", False),  # no word is an s
        ("The birthplace of Anna Berg in Norway is the city of", False),  # a name says nothing more
        ("The mayor of the birthplace city of Anna Berg is", True),
        ("The mayor of the town where the house stands in which Anna Berg was born is", True),
        ("It rained all day and nobody went out. Where was Anna Berg born?", False),  # only the question counts
    ],
)
def test_what_builds_on_an_answer_says_more_than_what_it_answers(text: str, more: bool) -> None:
    assert asks_more(text, "The birthplace of Anna Berg is the city of", "Anna Berg", named=True) is more


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("The birthplace of the sister of Tom Berg is the city of", False),  # that is Anna
        ("The mayor of the birthplace city of the sister of Tom Berg is", True),
    ],
)
def test_a_word_may_say_who_is_meant_where_no_name_does(text: str, more: bool) -> None:
    assert asks_more(text, "The birthplace of Anna Berg is the city of", "Anna Berg", named=False) is more


def test_a_full_stop_within_a_name_ends_no_sentence() -> None:
    text, phrase = "In which country does the city lie where Anna B. Berg was born?", "Anna B. Berg was born in"
    assert asks_more(text, phrase, "Anna B. Berg", named=True)


def test_words_of_a_name_alone_are_nothing_to_say_more_than() -> None:
    assert not asks_more("Who was Anna Berg's mother?", "Anna Berg is", "Anna Berg", named=True)
