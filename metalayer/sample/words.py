"""The words the made-up exports are written with.

Names are common ones put together by chance. E-mail addresses end in the domains reserved for
examples (RFC 2606), and telephone numbers lie in 555-0100 to 555-0199, reserved for fiction.
The accents are all in Windows-1252, and some are outside Latin-1, so the two encodings differ.
"""

import unicodedata
from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """Aaron Abigail Ahmed Aisha Alexander Alice Amir Ana Andrew Angela Anna Anthony Aoife Arjun Ava
    Beatriz Benjamin Björn Brian Camille Carlos Caroline Chen Chloé Christopher Claire Daniel
    Daria David Deborah Diego Dmitri Dorothy Edward Elena Elizabeth Emily Emma Eric Ethan
    Fatima Felix Fiona François Gabriel George Grace Hannah Hassan Helen Henry Hiroshi Ibrahim
    Inés Isabel Jack Jacob James Jamila Jan Jasmine Jennifer Jessica João John Jonathan José
    Joseph Joshua Julia Karen Katherine Kenji Kevin Lars Laura Leah Liam Linda Lucía Lukas
    Margaret María Mark Martin Mary Matthew Mei Michael Mohammed Naomi Natalie Nicholas Noah
    Nora Olivia Omar Patricia Patrick Paul Peter Priya Rachel Rafael Raúl Rebecca Richard
    Robert Rosa Ryan Samuel Sandra Sara Sean Sofia Søren Stephanie Steven Susan Tariq Teresa
    Thomas Tomáš Victoria Vikram Wei William Yuki Yusuf Zachary Zoë Žofia"""
)

LAST_NAMES = _words(
    """Adams Ahmed Allen Álvarez Anderson Bailey Baker Barnes Bell Bennett Björk Brooks Brown
    Campbell Carter Castro Chang Chavez Chen Clark Coleman Collins Cook Cooper Costa Cox Cruz
    Davies Davis Delacroix Diaz Dupont Edwards Evans Fernández Fischer Fisher Flores Foster
    Gallagher García Gomez González Gray Green Griffin Gupta Haddad Hall Hansen Harris Hayes
    Henderson Hernández Hill Howard Huang Hughes Ivanova Jackson James Jenkins Johnson Jones
    Kaya Keller Kelly Khan Kim King Kowalski Kumar Lee Lefèvre Lewis Lindqvist Long López
    Martin Martínez Meyer Miller Mitchell Moore Morales Morgan Morris Müller Murphy Myers
    Nakamura Nelson Nguyen Novak Núñez O\u2019Brien O\u2019Hara Okafor Oliveira Ortiz Parker
    Patel Pereira Perez Perry Peterson Phillips Powell Price Ramirez Reed Reyes Richardson
    Rivera Roberts Robinson Rodríguez Rogers Ross Rossi Russell Sanders Santos Sato Schmidt
    Schneider Scott Šimek Silva Singh Smith Stewart Sullivan Suzuki Taylor Thomas Thompson
    Torres Turner Vasquez Walker Ward Watson White Williams Wilson Wood Wright Yamamoto Young
    Zhang"""
)

DOMAINS = ("example.org", "example.com", "example.net")


class City(NamedTuple):
    """Where a customer lives: the first three digits of the zip code and one telephone area."""

    name: str
    state: str
    zip_prefix: str
    area: str
    region: str


CITIES = tuple(
    City(*line.strip().split("|"))
    for line in """New York|NY|100|212|Northeast
    Buffalo|NY|142|716|Northeast
    Boston|MA|021|617|Northeast
    Worcester|MA|016|508|Northeast
    Philadelphia|PA|191|215|Northeast
    Pittsburgh|PA|152|412|Northeast
    Newark|NJ|071|973|Northeast
    Providence|RI|029|401|Northeast
    Hartford|CT|061|860|Northeast
    Portland|ME|041|207|Northeast
    Burlington|VT|054|802|Northeast
    Chicago|IL|606|312|Midwest
    Detroit|MI|482|313|Midwest
    Columbus|OH|432|614|Midwest
    Cleveland|OH|441|216|Midwest
    Indianapolis|IN|462|317|Midwest
    Milwaukee|WI|532|414|Midwest
    Minneapolis|MN|554|612|Midwest
    Saint Louis|MO|631|314|Midwest
    Kansas City|MO|641|816|Midwest
    Omaha|NE|681|402|Midwest
    Houston|TX|770|713|South
    Dallas|TX|752|214|South
    Austin|TX|787|512|South
    Miami|FL|331|305|South
    Jacksonville|FL|322|904|South
    Atlanta|GA|303|404|South
    Charlotte|NC|282|704|South
    Raleigh|NC|276|919|South
    Nashville|TN|372|615|South
    New Orleans|LA|701|504|South
    Louisville|KY|402|502|South
    Baltimore|MD|212|410|South
    Los Angeles|CA|900|213|West
    San Diego|CA|921|619|West
    San José|CA|951|408|West
    San Francisco|CA|941|415|West
    Seattle|WA|981|206|West
    Portland|OR|972|503|West
    Denver|CO|802|303|West
    Phoenix|AZ|850|602|West
    Albuquerque|NM|871|505|West
    Las Vegas|NV|891|702|West
    Salt Lake City|UT|841|801|West
    Honolulu|HI|968|808|West
    Anchorage|AK|995|907|West""".splitlines()
)

REGIONS = ("Northeast", "Midwest", "South", "West")
REGION_ABBREVIATIONS = ("NE", "MW", "S", "W")

# Weights beside the words: how many of a hundred orders are in that state.
ORDER_STATUSES = {
    "COMPLETED": 40,
    "PAID": 22,
    "CLOSED": 12,
    "COMPLETE": 7,
    "SHIPPED": 9,
    "PENDING": 4,
    "CANCELLED": 6,
}


def ascii_letters(word: str) -> str:
    """The word as it stands in an e-mail address: `Søren` -> `soren`."""
    plain = unicodedata.normalize("NFKD", word.replace("ø", "o"))
    return "".join(letter for letter in plain.lower() if letter.isascii() and letter.isalpha())
