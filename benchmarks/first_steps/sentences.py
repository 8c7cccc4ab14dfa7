"""The dataset: short English sentences, each about one of two topics, and a made-up code for each topic.

A model that answers with the right code for a sentence that it was not trained on has learned the topics, and not the
sentences. The topics of the split `tune` were used to choose the defaults of the library; those of the split `test`
are used only for the table.
"""

from __future__ import annotations

import random
from typing import NamedTuple


TRAINED_PER_TOPIC = 10

TOPICS = {
    "tune": {
        "animals": """
            The old dog sleeps on the warm porch all day.
            Two horses drink from the river near the bridge.
            A gray cat chases mice behind the barn.
            The sheep follow each other across the green hill.
            Our rabbit eats carrots from my sister's hand.
            An owl hunts at night over the quiet fields.
            The elephant lifts its trunk and sprays cool water.
            Young foxes play in front of their den.
            A spider builds its web between two branches.
            The cow gives milk twice every single day.
            Three ducks swim slowly around the small pond.
            The bear catches salmon in the cold stream.
            A snake hides under the flat gray stones.
            Penguins keep their eggs warm on their feet.
            The monkey climbs the tallest tree for fruit.
            Bees carry pollen from flower to flower.
            A wolf howls at the moon in winter.
            The parrot repeats every word that it hears.
            Goats can walk on very steep cliffs.
            The whale dives deep to look for food.""",
        "cooking": """
            Chop the onions and fry them in butter.
            The soup needs a little more salt and pepper.
            Bake the bread until its crust is golden brown.
            She stirs the thick sauce with a wooden spoon.
            Boil the pasta for nine minutes in salted water.
            He whisks three eggs with sugar and cream.
            The roast stays in the oven for two hours.
            Peel the potatoes and cut them into cubes.
            Grandmother's apple pie smells of cinnamon and cloves.
            Add a cup of flour and knead the dough.
            The chef grills fresh fish with lemon and garlic.
            Melt the chocolate slowly over hot water.
            Season the salad with olive oil and vinegar.
            The rice is ready when the steam escapes.
            Slice the tomatoes and spread them on toast.
            Simmer the lentils with carrots and celery.
            She rolls the dumplings and steams them gently.
            The pancakes turn brown on both sides.
            Marinate the chicken with ginger and soy sauce.
            Pour the batter into a buttered cake tin.""",
        "travel": """
            The train to Vienna leaves at half past seven.
            We booked a small hotel close to the station.
            Her flight was delayed for almost four hours.
            Passengers must show their passports at the gate.
            The bus stops at every village along the coast.
            He packed two suitcases for the long journey.
            A taxi took us from the airport to town.
            The ferry crosses the strait twice an hour.
            They rented a car and drove through Spain.
            Our guide showed us the castle and the harbor.
            The ticket office opens early in the morning.
            She missed her connection in Frankfurt last night.
            The map shows a shortcut to the border.
            Tourists wait in line before the famous museum.
            We crossed the desert in an old jeep.
            The captain announced that we would land soon.
            His backpack was lost on the way home.
            The night train has beds in every carriage.
            They spent their holiday on a Greek island.
            A visa is required for a longer stay.""",
    },
    "test": {
        "weather": """
            Heavy rain fell on the valley all night.
            The morning fog will clear before noon.
            A cold wind blows from the northern mountains.
            Snow covered the roofs and the empty streets.
            The sky turned dark before the thunderstorm began.
            It will be sunny and dry until Thursday.
            Hail damaged the windows of several parked cars.
            The summer heat lasted for almost three weeks.
            Clouds gather slowly above the western hills.
            There was frost on the grass this morning.
            A light breeze cools the hot afternoon.
            The hurricane reached the coast late at night.
            Temperatures will drop below zero this evening.
            The drizzle stopped and a rainbow appeared.
            Lightning struck the tower during the storm.
            The air is humid and warm before rain.
            Icy roads are expected in the early hours.
            The forecast promises mild days and clear nights.
            A blizzard closed the mountain pass for days.
            After the drought came weeks of steady showers.""",
        "sports": """
            The striker scored two goals in the first half.
            She won the race by less than a second.
            Our team lost the final after a penalty shootout.
            The goalkeeper caught the ball with one hand.
            He trains for the marathon every single morning.
            The boxer defended his title in the ninth round.
            They play volleyball on the beach each Saturday.
            The coach replaced three players before the break.
            Her serve was too fast for any opponent.
            The cyclists climbed the last hill side by side.
            A new swimmer broke the national record yesterday.
            The referee showed a red card after the foul.
            The skater landed a perfect triple jump.
            Fans cheered when the captain lifted the trophy.
            He threw the javelin more than eighty meters.
            The match was decided in the third set.
            The gymnast balanced on the narrow beam.
            Both rowers crossed the finish line exhausted.
            The pitcher struck out six batters in a row.
            She scored with a long shot from midfield.""",
        "music": """
            The pianist plays a slow waltz by Chopin.
            A choir sings in the church on Sunday.
            He tunes his guitar before every concert.
            The violin begins with a long high note.
            Her new album has twelve songs on it.
            The drummer keeps a steady beat all evening.
            They rehearse the symphony with a full orchestra.
            The old record plays jazz from the fifties.
            A trumpet joins the melody in the chorus.
            She composes for flute, harp and cello.
            The conductor raises his baton and waits.
            The band performed its biggest hit last.
            Children learn to read notes and to sing.
            The opera ends with a famous duet.
            The bass line carries the whole tune.
            He whistles a folk song from his village.
            The organ filled the hall with deep chords.
            The quartet recorded two sonatas last winter.
            The rhythm changes in the second verse.
            Her voice reaches the highest notes with ease.""",
    },
}

CODES = {
    "tune": (("zorv", "blick"), ("mupe", "grast"), ("felk", "tondo")),
    "test": (("quib", "dranto"), ("wesk", "plomi"), ("hurn", "salvik")),
}


class Example(NamedTuple):
    """
    A sentence and its answer.

    Attributes:
        sentence (`str`)
        code (`str`): the made-up word that stands for the sentence's topic.
    """

    sentence: str
    code: str


class Dataset(NamedTuple):
    """
    The examples of one run.

    Attributes:
        trained (`list[Example]`): 20 examples to train on, half of each topic.
        unseen (`list[Example]`): 20 examples that are not trained on, half of each topic.
    """

    trained: list[Example]
    unseen: list[Example]


def make_dataset(split: str, seed: int) -> Dataset:
    """
    Selects the topics, their codes and the trained sentences of a run.

    Args:
        split (`str`): `"tune"` or `"test"`; they have no topic and no code in common.
        seed (`int`): three consecutive seeds give the three pairs of topics of a split.

    Returns:
        [`Dataset`]: both parts are shuffled.
    """
    topics = {name: [line.strip() for line in text.strip().splitlines()] for name, text in TOPICS[split].items()}
    names = list(topics)
    pair = (names[seed % 3], names[(seed + 1) % 3])
    draw = random.Random(f"{split}:{seed}")
    trained, unseen = [], []
    for topic, code in zip(pair, CODES[split][seed % 3], strict=True):
        examples = [Example(sentence, code) for sentence in topics[topic]]
        draw.shuffle(examples)
        trained += examples[:TRAINED_PER_TOPIC]
        unseen += examples[TRAINED_PER_TOPIC:]
    draw.shuffle(trained)
    draw.shuffle(unseen)
    return Dataset(trained, unseen)
