# ruff: noqa: E501  (a table: one tool a row)
"""Hand-written tools with the requests people really make, such as the weather of a city.

Each is a row: name, topic, description, properties, required, requests, results, answers. `{city}` in a request is a
slot; its text is what the user says and its value goes into the arguments. Answers may use slots and result fields.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from k2tiny.slots import CURRENCIES, SLOTS
from k2tiny.tools import Request, Tool, declare
from k2tiny.values import Drawn, pick

_SLOT = re.compile(r"{(\w+)}")
_S, _I, _N, _B = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}


def _s(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


# name, topic, description, {property: (slot, schema)}, required, requests, result {field: slot}, answers
Row = tuple[
    str,
    str,
    str,
    dict[str, tuple[str, dict[str, Any]]],
    Sequence[str],
    Sequence[str],
    dict[str, str],
    Sequence[str],
]
ROWS: tuple[Row, ...] = (
    ("get_weather", "weather", "Get the current weather of a city",
     {"city": ("city", _s("Name of the city")), "unit": ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]})}, ("city",),
     ("What is the weather in {city}?", "What's the weather like in {city}?", "How is the weather in {city} today?", "Weather in {city}, please.", "Tell me the weather in {city}.", "What is the weather in {city} in {unit}?", "Is it warm in {city}?", "Use the tool to check the weather in {city}."),
     {"temperature": "degrees", "condition": "condition"},
     ("It is {temperature} degrees and {condition} in {city}.", "In {city} it is {condition}, {temperature} degrees.", "The weather in {city} is {condition} with {temperature} degrees.")),
    ("get_current_weather", "weather", "Get the current weather in a given location",
     {"location": ("city", _s("The city, for example San Francisco")), "unit": ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]})}, ("location",),
     ("What is the weather in {city}?", "What's the weather like in {city} right now?", "How warm is it in {city} in {unit}?", "Can you tell me the weather in {city}?"),
     {"temperature": "degrees", "weather": "condition"},
     ("It is {weather} in {city} and {temperature} degrees.", "In {city} it is {temperature} degrees and {weather}.")),
    ("weather.forecast", "weather", "Forecast of the weather for some days",
     {"city": ("city", _S), "days": ("small", {"type": "integer", "description": "Number of days"})}, ("city", "days"),
     ("What will the weather be in {city} for the next {small} days?", "Give me a {small} day forecast for {city}.", "Forecast for {city}, {small} days."),
     {"summary": "condition", "high": "degrees"},
     ("It will be {summary} in {city}, up to {high} degrees.", "The next {small} days in {city} will be {summary}, with a high of {high}.")),
    ("search_flights", "flights", "Search flights between two cities",
     {"origin": ("city", _s("City of departure")), "destination": ("to_city", _s("City of arrival")), "date": ("date", _s("YYYY-MM-DD"))}, ("origin", "destination", "date"),
     ("Find flights from {city} to {to_city} on {date}.", "I want to fly from {city} to {to_city} on {date}.", "Are there flights on {date} from {city} to {to_city}?", "Search flights to {to_city} from {city} for {date}."),
     {"flight": "id", "price": "amount"},
     ("Flight {flight} goes from {city} to {to_city} for {price}.", "I found flight {flight} for {price}.")),
    ("book_hotel", "hotels", "Book a room in a hotel",
     {"city": ("city", _S), "check_in": ("date", _S), "nights": ("small", _I)}, ("city", "check_in", "nights"),
     ("Book a hotel in {city} from {date} for {small} nights.", "I need a room in {city} for {small} nights from {date}.", "Please reserve {small} nights in {city}, arriving on {date}."),
     {"confirmation": "id", "total": "amount"},
     ("Your room in {city} is booked. The confirmation is {confirmation} and the total is {total}.", "Booked: confirmation {confirmation}, total {total}.")),
    ("get_time", "time", "Get the current time in a city", {"city": ("city", _S)}, ("city",),
     ("What time is it in {city}?", "Tell me the time in {city}.", "What is the current time in {city}?"),
     {"time": "time"}, ("It is {time} in {city}.", "The time in {city} is {time}.")),
    ("set_alarm", "alarm", "Set an alarm",
     {"time": ("time", _s("HH:MM")), "label": ("phrase", _S)}, ("time",),
     ("Wake me at {time}.", "Set an alarm for {time}.", "Set an alarm at {time} called {phrase}.", "I need an alarm for {time}."),
     {"status": "status"}, ("Your alarm is set for {time}.", "The alarm for {time} is ready.")),
    ("set_timer", "timer", "Start a timer", {"minutes": ("small", _I)}, ("minutes",),
     ("Set a timer for {small} minutes.", "Start a {small} minute timer.", "Remind me in {small} minutes."),
     {"id": "id"}, ("The timer runs for {small} minutes.", "Your {small} minute timer has started.")),
    ("create_event", "calendar", "Create an event in the calendar",
     {"title": ("phrase", _S), "date": ("date", _S), "time": ("time", _S), "guests": ("people", {"type": "array", "items": {"type": "string"}})}, ("title", "date"),
     ("Add {phrase} to my calendar on {date}.", "Create an event {phrase} on {date} at {time}.", "Plan {phrase} for {date} with {people}.", "Put {phrase} in the calendar for {date} at {time} with {people}."),
     {"event_id": "id"}, ("I have added it to your calendar for {date}.", "Done, event {event_id} is on {date}.")),
    ("list_events", "calendar", "List the events of a day", {"date": ("date", _S)}, ("date",),
     ("What is on my calendar on {date}?", "Show my events on {date}.", "Do I have anything planned on {date}?"),
     {"count": "small", "first": "time"}, ("You have {count} events on {date}. The first is at {first}.",)),
    ("send_email", "email", "Send an email",
     {"to": ("email", _s("Address of the recipient")), "subject": ("phrase", _S), "body": ("text", _S)}, ("to", "subject", "body"),
     ("Send an email to {email} with subject {phrase} and text {text}.", "Write to {email}: subject {phrase}, body {text}.", "Email {email} about {phrase} and say {text}."),
     {"status": "status"}, ("Your email to {email} has been sent.", "I have sent the email to {email}.")),
    ("send_message", "messages", "Send a text message",
     {"recipient": ("person", _S), "message": ("text", _S)}, ("recipient", "message"),
     ("Tell {person} {text}.", "Send {person} the message {text}.", "Text {person}: {text}."),
     {"status": "status"}, ("I have sent the message to {person}.", "Your message to {person} is sent.")),
    ("make_call", "calls", "Call a phone number", {"number": ("phone", _S)}, ("number",),
     ("Call {phone}.", "Please dial {phone}.", "Can you call {phone} for me?"), {"status": "status"}, ("I am calling {phone}.",)),
    ("translate_text", "translation", "Translate a text to another language",
     {"text": ("text", _S), "target_language": ("language", _S)}, ("text", "target_language"),
     ("Translate {text} to {language}.", "How do you say {text} in {language}?", "What is {text} in {language}?"),
     {"translation": "place"}, ("In {language} it is: {translation}.", "The {language} translation is {translation}.")),
    ("get_exchange_rate", "exchange", "Get the exchange rate of two currencies",
     {"base": ("currency", _s("Currency code")), "quote": ("to_currency", _s("Currency code"))}, ("base", "quote"),
     ("What is the exchange rate from {currency} to {to_currency}?", "How many {to_currency} do I get for one of the {currency}?", "Exchange rate of {currency} to {to_currency}, please."),
     {"rate": "amount"}, ("The rate is {rate}.", "One gives you {rate}.")),
    ("exchange_money", "exchange", "Exchange an amount of money into another currency",
     {"amount": ("amount", _N), "source": ("currency", _s("Currency code such as EUR")), "target": ("to_currency", _s("Currency code such as USD"))}, ("amount", "source", "target"),
     ("Change {amount} {currency} to {to_currency}.", "Convert {amount} {currency} to {to_currency}.", "How much is {amount} {currency} in {to_currency}?", "I have {amount} {currency}. How much is that in {to_currency}?"),
     {"result": "amount"}, ("{amount} {currency} are {result} {to_currency}.", "That is {result} {to_currency}.")),
    ("transfer_money", "bank", "Transfer money to an account",
     {"recipient": ("person", _S), "amount": ("amount", _N), "currency": ("currency", {"type": "string", "enum": list(CURRENCIES.values())})}, ("recipient", "amount", "currency"),
     ("Send {amount} {currency} to {person}.", "Transfer {amount} {currency} to {person}.", "Pay {person} {amount} {currency}."),
     {"reference": "id"}, ("I have sent {amount} {currency} to {person}. The reference is {reference}.", "Done. Reference: {reference}.")),
    ("get_balance", "bank", "Get the balance of an account", {"account_id": ("id", _S)}, ("account_id",),
     ("What is the balance of account {id}?", "How much money is in account {id}?", "Check account {id}."),
     {"balance": "amount"}, ("The balance of account {id} is {balance}.", "There are {balance} in account {id}.")),
    ("track_package", "parcels", "Track a package", {"tracking_number": ("id", _S)}, ("tracking_number",),
     ("Where is my package {id}?", "Track package {id}.", "What is the status of parcel {id}?"),
     {"status": "status", "city": "city"}, ("Package {id} is {status} in {city}.", "It is {status}. The last stop was {city}.")),
    ("order_food", "food", "Order food",
     {"dish": ("dish", _S), "quantity": ("small", _I), "address": ("place", _S)}, ("dish", "quantity"),
     ("Order {small} portions of {dish}.", "I want {small} {dish} delivered to {place}.", "Get me {small} times {dish}, to {place} please."),
     {"order_id": "id", "minutes": "degrees"}, ("Your {dish} will arrive in {minutes} minutes. The order is {order_id}.", "Order {order_id} is on its way.")),
    ("find_restaurant", "restaurants", "Find a restaurant", {"city": ("city", _S), "food": ("dish", _S)}, ("city",),
     ("Where can I eat {dish} in {city}?", "Find a restaurant in {city} with {dish}.", "I am in {city}. Where can I eat?", "Recommend a restaurant in {city}."),
     {"name": "place", "rating": "small"}, ("Try {name} in {city}.", "{name} is a good place, with a rating of {rating}.")),
    ("play_music", "music", "Play music", {"genre": ("genre", _S), "room": ("room", _S)}, ("genre",),
     ("Play some {genre}.", "Play {genre} in the {room}.", "I want to hear {genre}.", "Put on {genre} in the {room}, please."),
     {"song": "song"}, ("Now playing {song}.", "Here is some {genre}: {song}.")),
    ("play_song", "music", "Play a song", {"title": ("song", _S)}, ("title",),
     ("Play {song}.", "I want to hear {song}.", "Please play the song {song}."), {"artist": "person"}, ("Playing {song} by {artist}.",)),
    ("set_light", "home", "Switch the light of a room", {"room": ("room", _S), "on": ("on", _B)}, ("room", "on"),
     ("Turn {on} the light in the {room}.", "Switch the {room} light {on}.", "Light {on} in the {room}, please."),
     {"status": "status"}, ("The light in the {room} is {on}.", "I have turned the {room} light {on}.")),
    ("set_temperature", "home", "Set the temperature of a room", {"room": ("room", _S), "degrees": ("degrees", _I)}, ("room", "degrees"),
     ("Set the {room} to {degrees} degrees.", "Make it {degrees} degrees in the {room}.", "Heat the {room} to {degrees} degrees."),
     {"status": "status"}, ("The {room} is set to {degrees} degrees.",)),
    ("read_file", "files", "Read a file", {"path": ("file", _S)}, ("path",),
     ("Read {file}.", "What is in {file}?", "Show me the content of {file}.", "Open the file {file}."),
     {"lines": "count", "title": "place"}, ("{file} has {lines} lines. Its title is {title}.",)),
    ("delete_file", "files", "Delete a file", {"path": ("file", _S), "force": ("on", _B)}, ("path",),
     ("Delete {file}.", "Remove the file {file}.", "Please delete {file} with force {on}."), {"status": "status"}, ("I have deleted {file}.", "{file} is gone.")),
    ("copy_file", "files", "Copy a file", {"source": ("file", _S), "target": ("new_file", _S)}, ("source", "target"),
     ("Copy {file} to {new_file}.", "Make a copy of {file} called {new_file}."), {"bytes": "count"}, ("I have copied {file} to {new_file}, {bytes} bytes.",)),
    ("web_search", "search", "Search the web", {"query": ("phrase", _S), "max_results": ("small", _I)}, ("query",),
     ("Search the web for {phrase}.", "Find {small} pages about {phrase}.", "Google {phrase}.", "Look up {phrase} on the web."),
     {"results": "count", "first": "place"}, ("I found {results} pages. The first is {first}.",)),
    ("define_word", "dictionary", "Look up the meaning of a word", {"word": ("word", _S)}, ("word",),
     ("What does {word} mean?", "Define {word}.", "Look up {word} in the dictionary."), {"page": "count"}, ("It is explained on page {page}.",)),
    ("calculator", "calculator", "Evaluate an arithmetic expression", {"expression": ("expression", _S)}, ("expression",),
     ("Use the calculator for {expression}.", "Calculate {expression} with the tool.", "Compute {expression}."), {"result": "count"}, ("The result is {result}.", "{expression} is {result}.")),
    ("add_todo", "tasks", "Add a task to the list",
     {"task": ("phrase", _S), "priority": ("priority", {"type": "string", "enum": ["low", "medium", "high"]}), "due": ("date", _S)}, ("task",),
     ("Add {phrase} to my tasks.", "Put {phrase} on my list with {priority} priority.", "Add the task {phrase}, due {date}.", "New task: {phrase}, {priority} priority, due {date}."),
     {"id": "id"}, ("The task is on your list.", "Added as task {id}.")),
    ("add_to_cart", "shop", "Put things into the shopping cart",
     {"items": ("fruits", {"type": "array", "items": {"type": "string"}})}, ("items",),
     ("Put {fruits} into my cart.", "Add {fruits} to the shopping cart.", "I want to buy {fruits}."), {"total": "amount"}, ("Your cart has {fruits}. The total is {total}.",)),
    ("invite_people", "party", "Invite people", {"people": ("people", {"type": "array", "items": {"type": "string"}}), "date": ("date", _S)}, ("people", "date"),
     ("Invite {people} for {date}.", "Ask {people} to come on {date}."), {"accepted": "small"}, ("I have invited {people}.",)),
    ("get_route", "route", "Get the way between two cities", {"start": ("city", _S), "end": ("to_city", _S)}, ("start", "end"),
     ("How do I get from {city} to {to_city}?", "Show me the way from {city} to {to_city}.", "What is the distance from {city} to {to_city}?"),
     {"distance_km": "count", "hours": "small"}, ("It is {distance_km} km from {city} to {to_city} and takes {hours} hours.",)),
    ("get_population", "geography", "Get the population of a country", {"country": ("country", _S)}, ("country",),
     ("How many people live in {country}?", "What is the population of {country}?"), {"millions": "count"}, ("{country} has {millions} million people.",)),
    ("get_capital", "geography", "Get the capital of a country", {"country": ("country", _S)}, ("country",),
     ("What is the capital of {country}?", "Look up the capital of {country}."), {"capital": "city"}, ("The capital of {country} is {capital}.",)),
    ("paint_wall", "paint", "Paint a wall of a room", {"room": ("room", _S), "color": ("color", _S)}, ("room", "color"),
     ("Paint the {room} {color}.", "Make the {room} {color}.", "I want a {color} {room}."), {"liters": "small"}, ("The {room} will be {color}. It takes {liters} liters.",)),
    ("get_train_times", "trains", "Get the departure times of trains", {"from": ("city", _S), "to": ("to_city", _S), "day": ("day", _S)}, ("from", "to"),
     ("When does the train from {city} to {to_city} leave?", "Trains from {city} to {to_city} on {day}?", "I need a train to {to_city} from {city} on {day}."),
     {"departure": "time"}, ("The train to {to_city} leaves at {departure}.",)),
    ("get_user", "users", "Get a user by id", {"user_id": ("count", _I)}, ("user_id",),
     ("Who is user {count}?", "Show user {count}.", "Get the user with id {count}."), {"name": "person", "email": "email"}, ("User {count} is {name}, {email}.",)),
    # Held out: never in training, see HELD_OUT.
    ("convert_currency", "exchange", "Convert an amount from one currency to another",
     {"amount": ("amount", _N), "from_currency": ("currency", _s("Currency code, for example EUR")), "to_currency": ("to_currency", _s("Currency code, for example USD"))}, ("amount", "from_currency", "to_currency"),
     ("Convert {amount} {currency} to {to_currency}.", "How much is {amount} {currency} in {to_currency}?", "Change {amount} {currency} to {to_currency}."),
     {"result": "amount"}, ("{amount} {currency} are {result} {to_currency}.",)),
    ("get_stock_price", "stocks", "Get the price of a stock", {"symbol": ("symbol", _s("Ticker symbol"))}, ("symbol",),
     ("What is the price of {symbol} stock?", "How much is {symbol}?", "Get the stock price of {symbol}."), {"price": "amount"}, ("{symbol} is at {price}.",)),
    ("rent_car", "cars", "Rent a car", {"city": ("city", _S), "pickup_date": ("date", _S), "days": ("small", _I)}, ("city", "pickup_date", "days"),
     ("Rent a car in {city} from {date} for {small} days.", "I need a car in {city} for {small} days from {date}."), {"price": "amount"}, ("A car in {city} costs {price}.",)),
    ("create_reminder", "reminders", "Create a reminder", {"text": ("phrase", _S), "time": ("time", _S)}, ("text", "time"),
     ("Remind me of {phrase} at {time}.", "Create a reminder {phrase} for {time}."), {"id": "id"}, ("I will remind you at {time}.",)),
    ("find_recipe", "recipes", "Find a recipe", {"ingredients": ("fruits", {"type": "array", "items": {"type": "string"}}), "dish": ("dish", _S)}, ("ingredients",),
     ("Find a recipe with {fruits}.", "What {dish} can I cook with {fruits}?"), {"title": "place"}, ("Try {title}.",)),
    ("cancel_subscription", "subscriptions", "Cancel a subscription", {"customer_id": ("id", _S), "end_date": ("date", _S)}, ("customer_id",),
     ("Cancel the subscription of customer {id}.", "Cancel the subscription of {id} on {date}."), {"status": "status"}, ("The subscription of {id} is cancelled.",)),
)  # fmt: skip
HELD_OUT = frozenset(
    (
        "convert_currency",
        "get_stock_price",
        "rent_car",
        "create_reminder",
        "find_recipe",
        "cancel_subscription",
    )
)

REALISTIC_NAMES = frozenset(row[0] for row in ROWS)


def _build(row: Row) -> Tool:
    name, topic, description, properties, required, requests, result, answers = row
    declaration = declare(
        name, description, {key: schema for key, (_, schema) in properties.items()}, required
    )

    def draw_request(rng: random.Random) -> Request:
        template = pick(rng, requests)
        drawn: dict[str, Drawn] = {}
        for slot in _SLOT.findall(template):
            drawn[slot] = SLOTS[slot](rng)
        text = _SLOT.sub(lambda match: drawn[match[1]][1], template)
        arguments = {key: drawn[slot][0] for key, (slot, _) in properties.items() if slot in drawn}
        return Request(text, arguments, {slot: spoken for slot, (_, spoken) in drawn.items()})

    def respond(rng: random.Random, request: Request) -> tuple[Any, str]:
        drawn = {field: SLOTS[slot](rng) for field, slot in result.items()}
        known = {field: spoken.strip("'\"") for field, (_, spoken) in drawn.items()} | {
            slot: text for slot, text in request.spoken.items() if slot not in drawn
        }
        usable = [a for a in answers if all(slot in known for slot in _SLOT.findall(a))]
        answer = _SLOT.sub(lambda match: known[match[1]], pick(rng, usable or ["Done."]))
        return {field: value for field, (value, _) in drawn.items()}, answer

    return Tool(name, declaration, topic, draw_request, respond)


@cache
def realistic_tools(held_out: bool) -> tuple[Tool, ...]:
    """Return the hand-written tools of training, or those held out."""
    return tuple(_build(row) for row in ROWS if (row[0] in HELD_OUT) == held_out)
