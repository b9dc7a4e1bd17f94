"""Values of tool parameters: what goes into the arguments, and how a user says it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from k2tiny import words
from k2tiny.toolwords import NOUNS, PHRASE_WORDS, spell

T = TypeVar("T")
Json = Any
Drawn = tuple[Json, str]  # the value in the arguments, and how the user says it


def pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[rng.randrange(len(options))]


_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def made_up_word(rng: random.Random) -> str:
    """Return a pronounceable word of two or three syllables, such as "zorbik"."""
    syllables = [pick(rng, _CONSONANTS) + pick(rng, _VOWELS) for _ in range(rng.randrange(1, 3))]
    return (
        "".join(syllables)
        + pick(rng, _CONSONANTS)
        + pick(rng, _VOWELS)
        + pick(rng, _CONSONANTS + "  ").strip()
    )


_ONSETS = spell(
    """b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p ph pl pr qu r s sc scr sh sk sl sm sn sp spl spr
    st str sw t th tr tw v w wh y z"""
)
_NUCLEI = spell("a a e e i i o o u u ai ea ee oa oo ou")
_CODAS = (
    "",
    "",
    *spell("b ck ct d ft g l ll lt m mp n nd ng nk nt p pt r rd rk rm rn rs rt s sh sk ss st t x"),
)
_SUFFIXES = spell("tion sion ment ness er or al ing ity ence ance able ory ure age ive ist ship")


def coined_word(rng: random.Random) -> str:
    """Return a word that looks English and, most likely, is new: "scruption", "planderness"."""
    syllables = [
        pick(rng, _ONSETS) + pick(rng, _NUCLEI) + pick(rng, _CODAS) for _ in range(pick(rng, (1, 2, 2, 3)))
    ]
    return "".join(syllables) + (pick(rng, _SUFFIXES) if rng.random() < 0.5 else "")


def draw_id(rng: random.Random) -> Drawn:
    letters = "".join(pick(rng, "ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randrange(1, 4)))
    digits = "".join(pick(rng, "0123456789") for _ in range(rng.randrange(2, 6)))
    value = pick(
        rng,
        (f"{letters}-{digits}", f"{letters}-{digits}", f"{letters}{digits}", f"{letters}{digits}", digits),
    )
    return value, value


def draw_city(rng: random.Random) -> Drawn:
    value = pick(rng, words.CITIES)
    return value, value


def draw_person(rng: random.Random) -> Drawn:
    value = pick(rng, words.PEOPLE)
    if rng.random() < 0.3:
        value += " " + made_up_word(rng).capitalize()
    return value, value


def draw_date(rng: random.Random) -> Drawn:
    value = f"20{rng.randrange(20, 36)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
    return value, value


def draw_time(rng: random.Random) -> Drawn:
    value = f"{rng.randrange(0, 24):02}:{pick(rng, ('00', '15', '30', '45', '10', '05'))}"
    return value, value


def draw_email(rng: random.Random) -> Drawn:
    user = pick(rng, (pick(rng, words.PEOPLE).lower(), made_up_word(rng)))
    value = f"{user}@{pick(rng, ('example.com', 'mail.org', 'post.net', made_up_word(rng) + '.com'))}"
    return value, value


def draw_file(rng: random.Random) -> Drawn:
    value = f"{pick(rng, NOUNS)}{pick(rng, ('', '_v2', '_final', '-1', '_' + made_up_word(rng)))}"
    value += pick(rng, (".txt", ".csv", ".pdf", ".json", ".png", ".md", ".py"))
    return value, value


def draw_phrase(rng: random.Random) -> Drawn:
    count = rng.randrange(1, 4)
    value = " ".join(
        pick(rng, PHRASE_WORDS) if rng.random() < 0.85 else made_up_word(rng) for _ in range(count)
    )
    mark = pick(rng, ("'", "'", '"'))
    return value, f"{mark}{value}{mark}"


def draw_proper(rng: random.Random) -> Drawn:
    value = made_up_word(rng).capitalize()
    if rng.random() < 0.3:
        value += " " + pick(
            rng, ("Street", "Road", "Park", "House", "Group", "Hotel", "Team", made_up_word(rng).capitalize())
        )
    return value, value


def draw_color(rng: random.Random) -> Drawn:
    value = pick(rng, words.COLORS)
    return value, value


def draw_count(rng: random.Random) -> Drawn:
    value = rng.randrange(1, pick(rng, (10, 50, 100, 1000, 5000)))
    return value, str(value)


def draw_amount(rng: random.Random) -> Drawn:
    whole = rng.randrange(1, pick(rng, (10, 100, 1000)))
    if rng.random() < 0.4:
        return whole, str(whole)
    text = (
        f"{whole}.{rng.randrange(1, 10)}"
        if rng.random() < 0.5
        else f"{whole}.{rng.randrange(1, 10)}{rng.randrange(1, 10)}"
    )
    return float(text), text


def draw_bool(rng: random.Random) -> Drawn:
    value = rng.random() < 0.5
    return value, pick(rng, ("on", "yes", "true", "enabled") if value else ("off", "no", "false", "disabled"))


def spoken_list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def draw_list(draw: Callable[[random.Random], Drawn]) -> Callable[[random.Random], Drawn]:
    def draw_items(rng: random.Random) -> Drawn:
        items = [draw(rng) for _ in range(rng.randrange(1, 4))]
        return [value for value, _ in items], spoken_list([text for _, text in items])

    return draw_items


def draw_of(options: Sequence[str]) -> Callable[[random.Random], Drawn]:
    def draw_option(rng: random.Random) -> Drawn:
        value = pick(rng, options)
        return value, value

    return draw_option
