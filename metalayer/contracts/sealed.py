"""How an encrypted value is written: a hint, the key it is sealed with, and the ciphertext.

    67~3fa9c1~Wm9V...    a phone number that ends in 67
    1984~3fa9c1~c3Rl...  a day in 1984
    !~3fa9c1~bm8g...     what was delivered is no value of its column's type

The hint is what a mask shows of the value anyway, so that masks need no key.

Does not belong here: keys and ciphertext (`governance/sealing.py`).
"""

#: Begins what is sealed although it is no value of its column's type.
UNFIT = "!"
SEPARATOR = "~"
#: Every value of its type, sealed; a pattern of Python's and of PostgreSQL's.
WELL_SEALED = "^[0-9]*~[0-9a-f]{6}~[A-Za-z0-9+/]+$"
#: Any sealed value, of its type or not. A checksum of 16 bytes and a text of one are 23 characters.
SEALED = "(?:!|[0-9]*)~([0-9a-f]{6})~([A-Za-z0-9+/]{23,})"
#: Kind of personal data, and type of the plain value -> the characters of it that are its hint.
#: They are digits, and no more than the mask of the plain value shows.
HINTS = {
    ("phone", "text"): slice(-2, None),
    ("birth_date", "date"): slice(0, 4),
    ("birth_date", "timestamp"): slice(0, 4),
}
