"""Makes ``models/evaluation/task_set.json``: run ``python tests/models/make_task_set.py`` after a change.

All items are ours: facts, sentences and templates stand here, and what varies is drawn by SHA-256, so that
the file is the same on every machine. A changed file is another task set, whose figures can't be compared
with those of the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

TASK_SET: Final = Path(__file__).parents[2] / "models" / "evaluation" / "task_set.json"
ITEMS: Final = 32
LETTERS: Final = "ABCD"
T = TypeVar("T")


class Draws:
    """Numbers drawn from SHA-256 of a name and a counter."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0

    def below(self, n: int) -> int:
        self._count += 1
        digest = hashlib.sha256(f"{self._name}/{self._count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % n

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def one(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """``count`` different ones, in an order that is drawn."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(count)]


NAMES: Final = (
    "Anna", "Ben", "Carla", "David", "Ella", "Frank", "Greta", "Henry", "Ida", "Jonas", "Kate", "Liam", "Mara",
    "Nina", "Oscar", "Paula", "Rosa", "Simon", "Tara", "Victor",
)  # fmt: skip
PLACES: Final = ("kitchen", "garden", "garage", "cellar", "office", "library", "attic", "barn")
THINGS: Final = ("key", "lamp", "map", "book", "cup", "ball", "coat", "letter", "basket", "umbrella")
COLOURS: Final = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")
CITIES: Final = ("Oslo", "Lima", "Cairo", "Rome", "Paris", "Tokyo", "Dublin", "Quito", "Vienna", "Lisbon")
JOBS: Final = ("baker", "nurse", "pilot", "farmer", "teacher", "painter", "lawyer", "plumber")
FOODS: Final = ("apples", "pears", "eggs", "lemons", "onions", "plums", "carrots", "nuts")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORDS: Final = (
    "apple", "river", "stone", "cloud", "table", "garden", "window", "silver", "market", "bridge", "candle",
    "forest", "planet", "button", "orange", "ticket", "winter", "rabbit", "pencil", "island",
)  # fmt: skip
SAYS: Final = {"lacks": "write"}
"""No sentence about its subject has this word, and each that only says the question again does."""
ANIMALS: Final = ("dog", "cat", "horse", "cow", "sheep", "goat", "pig", "duck", "hen", "fox")


def arithmetic(draw: Draws) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    while len(items) < ITEMS:
        level = len(items) % 8
        a, b = draw.between(2, 9), draw.between(2, 9)
        c, d = draw.between(11, 60), draw.between(11, 39)
        name, food = draw.one(NAMES), draw.one(FOODS)
        if level == 0:
            text, numbers, answer = f"What is {a} + {b}?", (a, b), a + b
        elif level == 1:
            text, numbers, answer = f"What is {a + b} - {b}?", (a + b, b), a
        elif level == 2:
            text, numbers, answer = f"What is {a} times {b}?", (a, b), a * b
        elif level == 3:
            text, numbers, answer = f"What is {c} + {b}?", (c, b), c + b
        elif level == 4:
            text, numbers, answer = f"What is {c} + {d}?", (c, d), c + d
        elif level == 5:
            text = f"{name} has {a} {food} and gets {b} more. How many {food} does {name} have now?"
            numbers, answer = (a, b), a + b
        elif level == 6:
            text = f"{name} buys {a} bags with {b} {food} in each. How many {food} is that?"
            numbers, answer = (a, b), a * b
        else:
            text, numbers, answer = f"What is {10 * c + a} + {10 * d + b}?", (c, d), 10 * c + a + 10 * d + b
        item = {"ask": f"{text} Answer with the number only.", "answer": answer}
        # An answer that only says the question again must not be right.
        if item not in items and answer not in numbers:
            items.append(item)
    return items


def strings(draw: Draws) -> list[dict[str, Any]]:
    def copy() -> tuple[str, str]:
        words = " ".join(draw.some(WORDS, 3))
        return f"Repeat these three words and write nothing else: {words}", words

    def capitals() -> tuple[str, str]:
        word = draw.one(WORDS)
        return f"Write the word {word} in capital letters. Write nothing else.", word.upper()

    def first_word() -> tuple[str, str]:
        words = draw.some(WORDS, 4)
        return f"What is the first word of this list? {', '.join(words)}. Write only that word.", words[0]

    def last_word() -> tuple[str, str]:
        words = draw.some(WORDS, 4)
        return f"What is the last word of this list? {', '.join(words)}. Write only that word.", words[-1]

    def first_letter() -> tuple[str, str]:
        word = draw.one(WORDS)
        return f"What is the first letter of the word {word}? Write only that letter.", word[0]

    def plural() -> tuple[str, str]:
        word = draw.one(("dog", "cat", "cup", "book", "lamp", "tree", "car", "hand", "bird", "door"))
        return f"Write the plural of the word {word}. Write only that word.", f"{word}s"

    def joined() -> tuple[str, str]:
        one, two = draw.some(WORDS, 2)
        return f"Write the words {one} and {two} with a dash between them, and nothing else.", f"{one}-{two}"

    def reverse() -> tuple[str, str]:
        word = draw.one(("cat", "dog", "sun", "net", "pot", "bus", "map", "pen", "leg", "box"))
        return f"Write the word {word} backwards. Write only that word.", word[::-1]

    kinds: tuple[Callable[[], tuple[str, str]], ...] = (
        copy, capitals, first_word, last_word, first_letter, plural, joined, reverse,
    )  # fmt: skip
    items: list[dict[str, Any]] = []
    while len(items) < ITEMS:
        ask, answer = kinds[len(items) % len(kinds)]()
        item = {"ask": ask, "answer": answer, "case": answer.isupper() and len(answer) > 1}
        if item not in items:
            items.append(item)
    return items


def instructions(draw: Draws) -> list[dict[str, Any]]:
    topics = draw.some(("the sea", "a train", "the moon", "bread", "a forest", "rain", "a dog", "music"), 8)
    items: list[dict[str, Any]] = [
        {"ask": f"Answer with the single word {word}.", "rules": {"words": [1, 1], "has": word}}
        for word in draw.some(WORDS, 4)
    ]
    items += [
        {
            "ask": f"Write one sentence about {topic} with at most ten words.",
            "rules": {"words": [3, 10], **SAYS},
        }
        for topic in topics[:4]
    ]
    for topic in topics[4:]:
        word = draw.one(WORDS)
        ask = f"Write one sentence about {topic} that has the word {word} in it."
        items.append({"ask": ask, "rules": {"has": word, "words": [3, 40], **SAYS}})
    for topic in topics[:4]:
        ask = f"Write one short sentence about {topic}. Use only lower-case letters."
        items.append({"ask": ask, "rules": {"case": "lower", "words": [3, 40], **SAYS}})
    for topic in topics[4:]:
        ask = f"Write one short sentence about {topic}. End it with an exclamation mark."
        items.append({"ask": ask, "rules": {"ends": "!", "words": [3, 40], **SAYS}})
    for animals in (draw.some(ANIMALS, 3) for _ in range(4)):
        ask = f"Write these animals, separated by commas and nothing else: {animals[0]} {animals[1]} {animals[2]}"
        items.append({"ask": ask, "rules": {"is": [", ".join(animals), ",".join(animals)]}})
    for number in (2, 3, 4, 5):
        ask = f"List {number} colours. Write each on a line of its own, and nothing else."
        items.append({"ask": ask, "rules": {"lines": number}})
    for word in draw.some(WORDS, 4):
        ask = f"Begin your answer with the word {word.capitalize()}. Then say one thing about it."
        items.append({"ask": ask, "rules": {"begins": word.capitalize(), "words": [3, 40], **SAYS}})
    return items


def _choice(draw: Draws, ask: str, right: str, wrong: Sequence[str], at: int) -> dict[str, Any]:
    """``at`` is the place of what is right: each letter is right equally often."""
    options = draw.some(wrong, len(LETTERS) - 1)
    options.insert(at, right)
    return {"ask": ask, "options": options, "answer": LETTERS[at]}


def reading(draw: Draws) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    while len(items) < ITEMS:
        kind, at = len(items) % 8, (len(items) // 8 + len(items)) % len(LETTERS)
        one, two, three, four = draw.some(NAMES, 4)
        places, things, colours = draw.some(PLACES, 4), draw.some(THINGS, 4), draw.some(COLOURS, 4)
        cities, jobs, days = draw.some(CITIES, 4), draw.some(JOBS, 4), draw.some(DAYS, 4)
        if kind == 0:
            text = (
                f"{one} put the {things[0]} in the {places[0]}. {two} put the {things[1]} in the {places[1]}."
            )
            item = _choice(draw, f"{text} Where is the {things[0]}?", places[0], places[1:], at)
        elif kind == 1:
            text = f"{one} is a {jobs[0]} and lives in {cities[0]}. {two} is a {jobs[1]} and lives in {cities[1]}."
            item = _choice(draw, f"{text} Who lives in {cities[1]}?", two, (one, three, four), at)
        elif kind == 2:
            text = f"{one} wanted a {colours[0]} coat, but the shop had only a {colours[1]} one, so {one} bought that."
            item = _choice(
                draw, f"{text} What colour is the coat?", colours[1], (colours[0], *colours[2:]), at
            )
        elif kind == 3:
            text = f"The bus leaves on {days[0]}. The train leaves on {days[1]}. {one} takes the train."
            item = _choice(draw, f"{text} When does {one} leave?", days[1], (days[0], *days[2:]), at)
        elif kind == 4:
            text = f"{one} had the {things[0]}. {one} gave it to {two}, and in the evening {two} gave it to {three}."
            item = _choice(draw, f"{text} Who has the {things[0]} now?", three, (one, two, four), at)
        elif kind == 5:
            text = (
                f"It rained all day in {cities[0]}, while the sun was shining in {cities[1]}. {one} got wet."
            )
            item = _choice(draw, f"{text} Where was {one}?", cities[0], cities[1:], at)
        elif kind == 6:
            text = f"{one} works as a {jobs[0]}. Before that, {one} was a {jobs[1]} for many years."
            item = _choice(draw, f"{text} What is {one}'s work now?", jobs[0], jobs[1:], at)
        else:
            text = (
                f"In the {places[0]} there are a {things[0]} and a {things[1]}. Only the {things[1]} is old."
            )
            item = _choice(
                draw, f"{text} What is old?", f"the {things[1]}", [f"the {things[n]}" for n in (0, 2, 3)], at
            )
        items.append(item)
    return items


# What is right stands first.
FACTS: Final = (
    ("How many days are in a week?", "7", "5", "6", "8"),
    ("Which animal barks?", "a dog", "a cow", "a fish", "a bee"),
    ("What is the capital of France?", "Paris", "Rome", "Berlin", "Madrid"),
    ("What do bees make?", "honey", "milk", "bread", "wool"),
    ("What is frozen water called?", "ice", "steam", "sand", "oil"),
    ("Which planet do we live on?", "Earth", "Mars", "Venus", "Saturn"),
    ("What is the opposite of hot?", "cold", "tall", "loud", "new"),
    ("Which of these is a fruit?", "a banana", "a chair", "a hammer", "a river"),
    ("In which season does snow usually fall?", "winter", "summer", "spring", "autumn"),
    ("What do we use to see?", "the eyes", "the ears", "the hands", "the nose"),
    ("How many legs has a spider?", "8", "4", "6", "10"),
    ("What is the largest ocean?", "the Pacific", "the Atlantic", "the Indian Ocean", "the Arctic Ocean"),
    ("Who wrote Romeo and Juliet?", "William Shakespeare", "Charles Dickens", "Mark Twain", "Jane Austen"),
    ("What is the chemical formula of water?", "H2O", "CO2", "NaCl", "O2"),
    ("Which gas do plants take from the air to grow?", "carbon dioxide", "helium", "neon", "hydrogen"),
    ("On which continent is Egypt?", "Africa", "Asia", "Europe", "South America"),
    ("How many minutes are in an hour?", "60", "30", "100", "24"),
    ("Which metal is liquid at room temperature?", "mercury", "iron", "gold", "copper"),
    ("What is the square root of 81?", "9", "8", "7", "18"),
    ("What force makes things fall to the ground?", "gravity", "friction", "magnetism", "electricity"),
    ("Which organ pumps blood?", "the heart", "the liver", "the lungs", "the brain"),
    ("What is the capital of Japan?", "Tokyo", "Beijing", "Seoul", "Bangkok"),
    ("Which of these numbers is prime?", "13", "9", "15", "21"),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci", "Vincent van Gogh", "Pablo Picasso", "Claude Monet"),
    ("Which planet is closest to the sun?", "Mercury", "Jupiter", "Neptune", "Mars"),
    ("What does a thermometer measure?", "temperature", "weight", "distance", "speed"),
    ("In which direction does the sun rise?", "in the east", "in the west", "in the north", "in the south"),
    ("What is a young cat called?", "a kitten", "a puppy", "a foal", "a calf"),
    ("Which of these is a programming language?", "Python", "Latin", "Sahara", "Everest"),
    ("How many sides has a triangle?", "3", "4", "5", "6"),
    ("Which of these materials lets light through?", "glass", "iron", "wood", "stone"),
    ("What do we call a person who flies a plane?", "a pilot", "a baker", "a tailor", "a judge"),
)


def knowledge(draw: Draws) -> list[dict[str, Any]]:
    return [
        _choice(draw, ask, right, wrong, (7 * at + at // 4) % len(LETTERS))
        for at, (ask, right, *wrong) in enumerate(FACTS)
    ]


def logic(draw: Draws) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    while len(items) < ITEMS:
        kind, at = len(items) % 4, (len(items) // 4) % len(LETTERS)
        one, two, three, four = draw.some(NAMES, 4)
        if kind == 0:
            numbers = draw.some([str(n) for n in range(3, 99)], 4)
            largest = max(numbers, key=int)
            wrong = [each for each in numbers if each != largest]
            item = _choice(draw, "Which number is the largest?", largest, wrong, at)
        elif kind == 1:
            text = f"{one} is taller than {two}. {two} is taller than {three}. {three} is taller than {four}."
            most = draw.below(2)
            ask = f"{text} Who is the {'tallest' if most else 'shortest'}?"
            right = one if most else four
            item = _choice(draw, ask, right, [each for each in (one, two, three, four) if each != right], at)
        elif kind == 2:
            day = draw.below(len(DAYS))
            right = DAYS[(day + 1) % len(DAYS)]
            wrong = [each for each in DAYS if each not in (right, DAYS[day])]
            item = _choice(draw, f"Today is {DAYS[day]}. Which day is tomorrow?", right, wrong, at)
        else:
            animals, odd = draw.some(ANIMALS, 3), draw.one(("chair", "table", "hammer", "bottle", "window"))
            item = _choice(draw, "Which of these words does not fit with the others?", odd, animals, at)
        if all(each["ask"] != item["ask"] or each["options"] != item["options"] for each in items):
            items.append(item)
    return items


def records(draw: Draws) -> list[dict[str, Any]]:
    def schema(**fields: str) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in fields.items()},
            "required": list(fields),
            "additionalProperties": False,
        }

    items: list[dict[str, Any]] = []
    while len(items) < ITEMS:
        kind = len(items) % 4
        name, city, age, count = draw.one(NAMES), draw.one(CITIES), draw.between(12, 79), draw.between(2, 40)
        food, colour, thing, day = draw.one(FOODS), draw.one(COLOURS), draw.one(THINGS), draw.one(DAYS)
        if kind == 0:
            text, value = f"{name} is {age} years old.", {"name": name, "age": age}
            form = schema(name="string", age="integer")
        elif kind == 1:
            text, value = f"{name} lives in {city}.", {"name": name, "city": city}
            form = schema(name="string", city="string")
        elif kind == 2:
            text = f"On {day} {name} bought {count} {food}."
            value = {"day": day, "name": name, "count": count, "what": food}
            form = schema(day="string", name="string", count="integer", what="string")
        else:
            open_ = bool(draw.below(2))
            text = f"The {colour} {thing} belongs to {name}, and it is {'' if open_ else 'not '}for sale."
            value = {"thing": thing, "colour": colour, "owner": name, "for_sale": open_}
            form = schema(thing="string", colour="string", owner="string", for_sale="boolean")
        keys = ", ".join(value)
        ask = f"{text} Write this as a JSON object with the keys {keys}."
        if all(each["ask"] != ask for each in items):
            items.append({"ask": ask, "schema": form, "answer": value})
    return items


def task_set() -> dict[str, Any]:
    """The whole set."""

    def task(
        about: str, check: str, tokens: int, guess: int, make: Callable[[Draws], list[dict[str, Any]]]
    ) -> dict[str, Any]:
        items = make(Draws(make.__name__))
        return {"about": about, "check": check, "tokens_max": tokens, "guess": guess, "items": items}

    return {
        "version": 1,
        "tasks": {
            "arithmetic": task("sums, differences and products, some in words", "number", 16, 0, arithmetic),
            "instructions": task("answers of a form that is asked for", "rules", 32, 0, instructions),
            "json": task("what a sentence says, as JSON by a schema", "json", 64, 0, records),
            "knowledge": task("common facts, one of four", "choice", 8, 25, knowledge),
            "logic": task("order, days and what does not fit, one of four", "choice", 8, 25, logic),
            "reading": task("questions about two or three sentences, one of four", "choice", 8, 25, reading),
            "strings": task("words copied, picked and changed", "text", 12, 0, strings),
        },
    }


def text_of(value: dict[str, Any]) -> str:
    """The file: an item a line."""
    tasks = []
    for name, each in value["tasks"].items():
        items = ",\n".join(f"    {json.dumps(item)}" for item in each["items"])
        head = ", ".join(f"{json.dumps(key)}: {json.dumps(each[key])}" for key in each if key != "items")
        tasks.append(f'  {json.dumps(name)}: {{{head}, "items": [\n{items}\n  ]}}')
    return f'{{"version": {value["version"]}, "tasks": {{\n' + ",\n".join(tasks) + "\n}}\n"


if __name__ == "__main__":
    TASK_SET.write_text(text_of(task_set()), encoding="utf-8")
