"""The words that the typed configuration shares with the rooms below; imports nothing heavy."""

from typing import Literal

OrderName = Literal["reshuffle", "shuffle_once", "sequential", "replacement"]
