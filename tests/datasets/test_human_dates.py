import datetime
import re
import time

import pytest

from datasets import human_dates
from datasets.human_dates import FIRST_DAY, LOCALES, NUM_DAYS, formats, write_date


def test_every_text_stands_for_one_date():
    # A year in four digits is in each text, so only dates of one year could be confused: all days
    # of a leap year, in all formats.
    meant = {}
    for locale in LOCALES:
        for pattern in formats(locale):
            for day in range(366):
                date = datetime.date(2004, 1, 1) + datetime.timedelta(day)
                text = write_date(date, locale, pattern)
                assert re.findall(r"\d{4}", text) == ["2004"], (text, locale, pattern)
                assert meant.setdefault(text, date) == date, (text, locale, pattern)
    assert len(meant) > 40_000


def test_targets_are_the_dates_of_their_texts():
    data = human_dates(300, held_out=1, locales=["en_GB"])
    months = "-jan-feb-mar-apr-may-jun-jul-aug-sep-oct-nov-dec"
    for text, target in zip(data.train.source_text, data.train.target_text, strict=True):
        year, month, day = target.split("-")
        assert year in text
        name = months[4 * int(month) - 3 : 4 * int(month)]
        assert name in text or re.search(rf"\b0?{int(month)}\b", text), text
        assert re.search(rf"\b0?{int(day)}\b", text), text


@pytest.mark.parametrize(
    "locale, pattern, text",
    [
        ("en_US", "EEEE, MMMM d, y", "monday, march 5, 2001"),
        ("de", "dd.MM.y", "05.03.2001"),
        ("fr", "d MMMM y", "5 mars 2001"),
        ("es", "EEEE, d 'de' MMMM 'de' y", "lunes, 5 de marzo de 2001"),
        ("ja", "y年M月d日", "2001年3月5日"),
        ("ru", "d MMMM y\u202f'г'.", "5 марта 2001 г."),
    ],
)
def test_locales_write_as_their_people_do(locale, pattern, text):
    assert pattern in formats(locale)
    assert write_date(datetime.date(2001, 3, 5), locale, pattern) == text


def test_ambiguous_formats_are_left_out():
    for locale in LOCALES:
        for pattern in formats(locale):
            fields = re.findall("[yMd]+", re.sub("'[^']*'", "", pattern))
            assert "yy" not in fields
            if fields[0] in ("M", "MM"):
                pytest.fail(f"{locale}: {pattern} puts a number of a month first")
    assert "M/d/yy" not in formats("en_US")


def test_held_out_dates_never_occur_in_training():
    data = human_dates(20_000, held_out=3_000)
    train, valid, test = (set(p.target_text) for p in (data.train, data.valid, data.test))
    assert not train & valid and not train & test and not valid & test
    days = {FIRST_DAY + datetime.timedelta(day) for day in range(NUM_DAYS)}
    assert {datetime.date.fromisoformat(text) for text in train | valid | test} <= days


def test_seed_decides_everything_and_count_leaves_the_held_out_alone():
    first, again, more = human_dates(50, 3), human_dates(50, 3), human_dates(80, 3)
    assert first == again
    assert (more.valid, more.test) == (first.valid, first.test)
    assert more.train.source_text[:50] == first.train.source_text
    assert human_dates(50, 4).train.source_text != first.train.source_text


def test_sizes_and_tokens():
    data = human_dates(10, held_out=7)
    assert (len(data.train), len(data.valid), len(data.test)) == (10, 7, 7)
    for tokens, text in zip(data.train.source, data.train.source_text, strict=True):
        assert tokens == list(text)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", text) for text in data.train.target_text)


def test_a_typed_date_becomes_the_tokens_of_a_written_one():
    tokenizer = human_dates(1, held_out=1).source_tokenizer
    assert tokenizer.tokenize(" 5  March 2001\n") == list("5 march 2001")


def test_all_locales_take_part_and_can_be_chosen():
    text = " ".join(human_dates(10_000, held_out=1).train.source_text)
    for day in ("monday", "montag", "lundi", "lunes", "понедельник", "δευτέρα", "月曜日", "월요일"):
        assert day in text
    english = " ".join(human_dates(2_000, held_out=1, locales=["en_US"]).train.source_text)
    assert english.isascii() and "monday" in english


def test_ten_thousand_pairs_take_about_a_second():
    human_dates(1, held_out=1)  # Babel reads its files
    start = time.process_time()
    human_dates(10_000, held_out=1)
    assert time.process_time() - start < 3  # measured: 0.5 s


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"held_out": -1}, "held_out must be at least 1, got -1"),
        ({"locales": ["en_US", "tlh"]}, r"locales must be some of en_US, .*; got .*'tlh'"),
        ({"locales": []}, r"locales must be some of .*; got \[\]"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        human_dates(**arguments)
