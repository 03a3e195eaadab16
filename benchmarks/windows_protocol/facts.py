"""Fifteen kinds of made-up facts, unlike each other: sentence, question, names and values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Use = Literal["held_out", "training"]


@dataclass(frozen=True)
class Kind:
    """One kind of fact.

    Attributes:
        sentence: with `{name}` and `{value}`.
        question: with `{name}`, to be answered with the value.
        names, values: drawn from; every other one is for training, the rest for the questions.
    """

    sentence: str
    question: str
    names: Sequence[str]
    values: Sequence[str]


@dataclass(frozen=True)
class Fact:
    """A needle.

    Attributes:
        sentence: as it stands in a text.
        question: that it answers.
        answer: what has to be said.
    """

    sentence: str
    question: str
    answer: str


CITIES = ("Lisbon", "Osaka", "Nairobi", "Quito", "Oslo", "Hanoi", "Perth", "Cairo", "Lima", "Turin")
VILLAGES = ("Ashford", "Brenwick", "Corley", "Dunmore", "Elmswell", "Fenton", "Garstang", "Harlow")
FAMILIES = ("Miller", "Novak", "Tanaka", "Rossi", "Larsen", "Okafor", "Silva", "Weber")
PEOPLE = ("Anna", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas")
COLOURS = ("blue", "red", "green", "yellow", "purple", "orange", "brown", "pink")
HORSES = ("Thunder", "Biscuit", "Comet", "Pepper", "Shadow", "Ginger", "Rocket", "Maple")
SHIPS = ("Aurora", "Neptune", "Seagull", "Victoria", "Dolphin", "Pioneer", "Mercury", "Albatross")
GOODS = ("coffee", "bananas", "timber", "salt", "copper", "wool", "oranges", "cement")
SUBJECTS = ("taxes", "bridges", "gardens", "libraries", "holidays", "schools", "parking", "fountains")
PLACES = ("Vienna", "Dublin", "Athens", "Madrid", "Prague", "Warsaw", "Geneva", "Helsinki")
FURNITURE = (
    "the piano",
    "the clock",
    "the mirror",
    "the wardrobe",
    "the stove",
    "the sofa",
    "the curtain",
    "the ladder",
)
INSTRUMENTS = (
    "the violin",
    "the trumpet",
    "the harp",
    "the flute",
    "the drums",
    "the guitar",
    "the cello",
    "the organ",
)
ANIMALS = ("a rabbit", "a parrot", "a turtle", "a goat", "a hamster", "a donkey", "a peacock", "a lizard")
FRUIT = ("cherries", "apples", "plums", "peaches", "lemons", "grapes", "melons", "pears")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PASSWORDS = ("tulip", "walnut", "lantern", "pebble", "velvet", "cactus", "anchor", "saffron")
NUMBERS = tuple(str(7919 * place % 9000 + 1000) for place in range(1, 41))
YEARS = tuple(str(year) for year in range(1703, 1903, 7))

KINDS: Sequence[Kind] = (
    Kind(
        "The special number of {name} is {value}.", "What is the special number of {name}?", CITIES, NUMBERS
    ),
    Kind(
        "The password of the {name} house is {value}.",
        "What is the password of the {name} house?",
        FAMILIES,
        PASSWORDS,
    ),
    Kind("The horse of {name} is called {value}.", "What is the horse of {name} called?", PEOPLE, HORSES),
    Kind("The ship {name} carries {value}.", "What does the ship {name} carry?", SHIPS, GOODS),
    Kind(
        "The meeting about {name} takes place in {value}.",
        "Where does the meeting about {name} take place?",
        SUBJECTS,
        PLACES,
    ),
    Kind(
        "The front door of {name} is painted {value}.",
        "Which colour is the front door of {name} painted?",
        PEOPLE,
        COLOURS,
    ),
    Kind(
        "The treasure of {name} is hidden behind {value}.",
        "Behind what is the treasure of {name} hidden?",
        FAMILIES,
        FURNITURE,
    ),
    Kind(
        "In the evening {name} plays {value}.",
        "Which instrument does {name} play in the evening?",
        PEOPLE,
        INSTRUMENTS,
    ),
    Kind(
        "The castle of {name} was built in the year {value}.",
        "In which year was the castle of {name} built?",
        VILLAGES,
        YEARS,
    ),
    Kind(
        "The pet of the {name} family is {value}.", "What is the pet of the {name} family?", FAMILIES, ANIMALS
    ),
    Kind("The farmers of {name} grow {value}.", "What do the farmers of {name} grow?", VILLAGES, FRUIT),
    Kind(
        "The market in {name} is open on {value}.", "On which day is the market in {name} open?", CITIES, DAYS
    ),
    Kind(
        "The flight to {name} has the number {value}.",
        "Which number has the flight to {name}?",
        CITIES,
        NUMBERS,
    ),
    Kind("The mayor of {name} is {value}.", "Who is the mayor of {name}?", VILLAGES, PEOPLE),
    Kind(
        "For the wedding {name} wears {value} shoes.",
        "Which colour are the shoes that {name} wears for the wedding?",
        PEOPLE,
        COLOURS,
    ),
)


def draw(kind: Kind, rng: random.Random, use: Use) -> Fact:
    """A fact of a kind; those of the two uses have neither a name nor a value in common."""
    first = ("held_out", "training").index(use)
    name, value = rng.choice(kind.names[first::2]), rng.choice(kind.values[first::2])
    return Fact(kind.sentence.format(name=name, value=value), kind.question.format(name=name), value)
