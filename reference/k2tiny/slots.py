"""The kinds of values that hand-written requests speak of: how each is drawn and said."""

from __future__ import annotations

import random

from k2tiny import toolwords, values, words
from k2tiny.parameters import Draw
from k2tiny.values import Drawn, pick

CURRENCIES = {
    "euros": "EUR",
    "dollars": "USD",
    "pounds": "GBP",
    "yen": "JPY",
    "francs": "CHF",
    "rupees": "INR",
    "pesos": "MXN",
    "kronor": "SEK",
    "zloty": "PLN",
    "lira": "TRY",
}
LANGUAGES = (
    "French",
    "German",
    "Spanish",
    "Italian",
    "Japanese",
    "Chinese",
    "Polish",
    "Greek",
    "Turkish",
    "Hindi",
)
STOCKS = (
    "AAPL",
    "MSFT",
    "NVDA",
    "AMZN",
    "TSLA",
    "IBM",
    "ORCL",
    "SAP",
    "INTC",
    "AMD",
    "NFLX",
    "META",
    "ADBE",
    "CSCO",
)
SONGS = (
    "Blue Moon",
    "Summer Rain",
    "Night Train",
    "Golden Road",
    "Silver Sea",
    "Morning Sun",
    "Little Star",
    "Wild Wind",
)
DISHES = (
    "soup",
    "pizza",
    "salad",
    "pasta",
    "curry",
    "tacos",
    "sushi",
    "noodles",
    "burgers",
    "dumplings",
    "steak",
    "rice",
)
GENRES = ("jazz", "rock", "pop", "folk", "opera", "blues", "techno", "funk")
ROOMS = ("kitchen", "bedroom", "bathroom", "hall", "office", "garage", "living room", "garden")
PHRASES = (
    "good morning",
    "thank you",
    "where is the station",
    "how are you",
    "see you tomorrow",
    "happy birthday",
    "the book is on the table",
    "I am hungry",
    "my name is Anna",
    "it is cold today",
)
CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy")


def draw_currency(rng: random.Random) -> Drawn:
    spoken, code = pick(rng, tuple(CURRENCIES.items()))
    return (code, spoken) if rng.random() < 0.7 else (code, code)


def draw_small(rng: random.Random) -> Drawn:
    value = rng.randrange(2, 13)
    return value, str(value)


def draw_degrees(rng: random.Random) -> Drawn:
    value = rng.randrange(5, 36)
    return value, str(value)


def draw_text(rng: random.Random) -> Drawn:
    value = pick(rng, PHRASES)
    return value, f"'{value}'"


def draw_symbol(rng: random.Random) -> Drawn:
    value = (
        pick(rng, STOCKS)
        if rng.random() < 0.5
        else "".join(pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randrange(3, 5)))
    )
    return value, value


def draw_word(rng: random.Random) -> Drawn:
    value = pick(rng, toolwords.NOUNS)
    return value, f"'{value}'"


def draw_phone(rng: random.Random) -> Drawn:
    value = "+" + "".join(pick(rng, "0123456789") for _ in range(rng.randrange(7, 11)))
    return value, value


def draw_expression(rng: random.Random) -> Drawn:
    a, b = rng.randrange(2, 100), rng.randrange(2, 100)
    value = f"{a} {pick(rng, '+-*')} {b}"
    return value, value


def draw_on(rng: random.Random) -> Drawn:
    value = rng.random() < 0.5
    return value, "on" if value else "off"


SLOTS: dict[str, Draw] = {
    "city": values.draw_city,
    "to_city": values.draw_city,
    "person": values.draw_person,
    "date": values.draw_date,
    "end_date": values.draw_date,
    "time": values.draw_time,
    "email": values.draw_email,
    "file": values.draw_file,
    "new_file": values.draw_file,
    "id": values.draw_id,
    "amount": values.draw_amount,
    "count": values.draw_count,
    "small": draw_small,
    "degrees": draw_degrees,
    "text": draw_text,
    "phrase": values.draw_phrase,
    "symbol": draw_symbol,
    "word": draw_word,
    "phone": draw_phone,
    "expression": draw_expression,
    "on": draw_on,
    "currency": draw_currency,
    "to_currency": draw_currency,
    "language": values.draw_of(LANGUAGES),
    "song": values.draw_of(SONGS),
    "dish": values.draw_of(DISHES),
    "genre": values.draw_of(GENRES),
    "room": values.draw_of(ROOMS),
    "country": values.draw_of(words.COUNTRIES),
    "day": values.draw_of(words.DAYS),
    "color": values.draw_color,
    "condition": values.draw_of(CONDITIONS),
    "place": values.draw_proper,
    "fruits": values.draw_list(values.draw_of([many for _, many in words.FRUIT])),
    "people": values.draw_list(values.draw_person),
    "status": values.draw_of(("open", "closed", "ready", "delayed", "shipped", "delivered", "cancelled")),
    "unit": values.draw_of(("celsius", "fahrenheit")),
    "priority": values.draw_of(("low", "medium", "high")),
}
