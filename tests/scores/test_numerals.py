"""Numbers as prompts write them, against a writer of Chinese numerals and tables of forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.scores.length import required_length, stated_lengths
from align.scores.numerals import read_arabic, read_chinese, read_english

DIGITS = "零一二三四五六七八九"


def written(number: int) -> str:
    """A number from 1 to 99,999,999 in Chinese, by the rules of school: 零 stands for the places that are left out."""
    high, low = divmod(number, 10_000)
    text = (below_myriad(high, inside=False) + "万" if high else "") + below_myriad(low, inside=high > 0)
    return text[1:] if text.startswith("一十") else text


def below_myriad(number: int, *, inside: bool) -> str:
    text, skipped, begun = "", False, inside
    for value, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // value % 10
        if digit:
            text += ("零" if skipped and begun else "") + DIGITS[digit] + unit
            skipped, begun = False, True
        else:
            skipped = True
    return text


def test_every_number_up_to_99999_is_read_back():
    assert [written(n) for n in (10, 12, 110, 1005, 10_500, 20_015)] == [
        "十",
        "十二",
        "一百一十",
        "一千零五",
        "一万零五百",
        "二万零一十五",
    ]
    assert all(read_chinese(written(number)) == number for number in range(1, 100_000))


@given(st.integers(100_000, 99_999_999))
def test_larger_ones_too(number):
    assert read_chinese(written(number)) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("一千五", 1_500),
        ("一万五", 15_000),
        ("一百二", 120),
        ("一万二千五", 12_500),
        ("两千三百", 2_300),
        ("一百十五", 115),
        ("二〇〇〇", 2_000),
        ("一五〇〇", 1_500),
        ("壹仟伍佰", 1_500),
        ("1万2千", 12_000),
        ("3万5千", 35_000),
        ("3千五百", 3_500),
        ("1.5万", 15_000),
        ("1万5", 15_000),
        ("1万5000", 15_000),
        ("1万500", 10_500),
        ("1 万 2 千", 12_000),
        ("一亿二千万", 120_000_000),
        ("千", None),
        ("百五", None),
        ("二百三千", None),
        ("一百千", None),
        ("一十十", None),
        ("三五", None),
    ],
)
def test_chinese_as_it_is_spoken_mixed_and_wrong(text, value):
    assert read_chinese(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("fifteen hundred", 1_500),
        ("two thousand five hundred and ten", 2_510),
        ("one hundred and fifty", 150),
        ("twenty-five", 25),
        ("two hundred thousand", 200_000),
        ("a thousand", 1_000),
        ("thousand", None),
        ("hundred", None),
    ],
)
def test_english_words(text, value):
    assert read_english(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,500", 1500),
        ("1 500", 1500),
        ("1'500", 1500),
        ("1.500", 1500),
        ("2.000.000", 2_000_000),
        ("1.5", 1.5),
    ],
)
def test_groups_of_thousands(text, value):
    assert read_arabic(text) == value
    assert read_arabic("1.500", scaled=True) == 1.5


@pytest.mark.parametrize(
    ("prompt", "length"),
    [
        ("写一篇一千五百字的作文", 1_500),
        ("一万五千字", 15_000),
        ("3万5千字", 35_000),
        ("二十五万字", 250_000),
        ("一百二十个字", 120),
        ("字数一千字左右", 1_000),
        ("字数要求：2000左右", 2_000),
        ("讲稿字数1400左右。", 1_400),
        ("一千多字", 1_000),
        ("1 万 2 千 字", 12_000),
        ("１０００字", 1_000),
        ("a 1.000 word essay", 1_000),
        ("2,000+ words", 2_000),
        ("a 1 000-word essay", 1_000),
        ("a 3 500-word essay", 3_500),
        ("a 500\u2011word essay", 500),
        ("1\u202f500 words", 1_500),
        ("10 000 words", 10_000),
        ("1.5k words", 1_500),
        ("3 thousand words", 3_000),
        ("fifteen hundred words", 1_500),
        ("a two-thousand-word essay", 2_000),
        ("a hundred and fifty words", 150),
        ("Word count: 800", 800),
        ("a word limit of 1,200", 1_200),
        ("500 words or more", 500),
        ("In 2019 500 words", 500),
    ],
)
def test_one_length(prompt, length):
    assert required_length(prompt) == length
    assert stated_lengths(prompt) == [length]


@pytest.mark.parametrize(
    ("prompt", "length"),
    [
        ("100 words per paragraph in five paragraphs", 500),
        ("five paragraphs of 100 words each", 500),
        ("Write 4 sections; each section should have about 250 words.", 1_000),
        ("For each of the five days, write 300 words.", 1_500),
        ("200 words for each of the three sections", 600),
        ("Write three 500-word essays", 1_500),
        ("Write 5 500-word essays", 2_500),
        ("a 2000-word essay with 4 sections of 500 words each", 2_000),
        ("创作五篇日记。行程5天，每天一篇。要求每篇400字左右。", 2_000),
        ("分两部分写，各写1000字", 2_000),
        ("a 3000-word essay with 4 sections of 500 words each", None),
        ("each paragraph should have 100 words", None),
        ("写一篇1.5万字的小说，每章三千字", None),
    ],
)
def test_the_length_of_a_part_counts_as_often_as_there_are_parts(prompt, length):
    assert required_length(prompt) == length


@pytest.mark.parametrize(
    ("prompt", "ends"),
    [
        ("五百到八百字", [500, 800]),
        ("三到五千字", [3_000, 5_000]),
        ("1-2万字", [10_000, 20_000]),
        ("两三千字", [2_000, 3_000]),
        ("一千五六百字", [1_500, 1_600]),
        ("字数要求100至200字", [100, 200]),
        ("a 500- to 800-word essay", [500, 800]),
        ("between five hundred and eight hundred words", [500, 800]),
    ],
)
def test_ranges(prompt, ends):
    assert stated_lengths(prompt) == ends and required_length(prompt) is None


@pytest.mark.parametrize(
    "prompt",
    [
        "几千字",
        "几十万字",
        "数十万字",
        "千字文",
        "半万字",
        "十字架",
        "100字符",
        "100字节",
        "第一百字",
        "in two words",
        "a picture is worth a thousand words",
        "speak at 150 words per minute",
        "九" * 400 + "字",
        "9" * 5000 + " words",
    ],
)
def test_no_length(prompt):
    assert stated_lengths(prompt) == []


@given(st.text(alphabet="一二十百千万零两0123456789 .,-kK字每各篇words andtofive hundred", max_size=60))
def test_any_text_gives_lengths_that_are_positive(prompt):
    assert all(length > 0 for length in stated_lengths(prompt))
    assert (required_length(prompt) or 1) > 0


@pytest.mark.parametrize("piece", ["one ", "一千", "1 000 ", "500 words ", "twenty-", "every one of the "])
def test_time_grows_with_the_prompt_and_not_with_its_square(piece):
    """A thousandfold piece: a second would be a hundred times what it takes."""
    import time

    start = time.process_time()
    required_length(piece * 1000)
    assert time.process_time() - start < 2
