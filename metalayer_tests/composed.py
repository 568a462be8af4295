"""docker-compose.yml and Dockerfile as tests read them: filled in as compose would, taken apart.

Nothing is started here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from metalayer.settings import PROJECT_ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: The services of our image.
OURS = {name: s for name, s in SERVICES.items() if s["image"].startswith("metalayer:")}
#: What compose fills in: name, how it is written if it is unset, and with what.
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:[-?])([^}]*))?\}")


def variables(text: str) -> dict[str, tuple[str, str]]:
    """Variable -> what follows if it is unset: `:?` and a message, or `:-` and a default."""
    return {name: (how, what) for name, how, what in _VARIABLE.findall(text)}


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text as compose hands it on; `KeyError` where a variable must be set and is not."""

    def value(match: re.Match[str]) -> str:
        name, how, default = match.groups()
        return values[name] if how != ":-" else values.get(name) or default

    return _VARIABLE.sub(value, text).replace("$$", "$")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions: word and the rest, continued lines joined."""
    text = (PROJECT_ROOT / "Dockerfile").read_text()
    lines = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ").splitlines()
    found = [line.partition(" ") for line in lines if line.strip()]
    return [(word.upper(), re.sub(r"\s+", " ", rest).strip()) for word, _, rest in found]


def image_environment() -> dict[str, str]:
    """The variables that the last stage sets, but for PATH."""
    stage: dict[str, str] = {}
    for word, rest in instructions():
        if word == "FROM":
            stage = {}
        elif word == "ENV":
            stage.update(pair.split("=", 1) for pair in rest.split(" "))  # type: ignore[arg-type]
    stage.pop("PATH", None)
    return stage
