"""What people set for themselves: choices of the form, and the letters of the task page's keys."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

CHOICES = {
    "theme": ("auto", "light", "dark"), "size": ("small", "normal", "large"), "enter": ("newline", "send"), "single": ("on", "off"),
}  # fmt: skip
LETTERS = {  # act -> letter, by its place on the keyboard
    "tie": "T", "undo": "U", "skip": "S", "report": "R", "guidelines": "G", "comment": "C", "hide": "H", "break": "B", "next": "J",
    "previous": "K", "yes": "Y", "no": "N",
}  # fmt: skip


def letters_of(given: Mapping[str, str]) -> dict[str, str] | None:
    """Letters that differ from LETTERS, "" for an act without a key. None: one letter stands for two acts, or is none."""
    used = [letter for letter in given.values() if letter]
    if len(set(used)) != len(used) or any(letter not in string.ascii_uppercase or len(letter) != 1 for letter in used):
        return None
    return {act: letter for act, letter in given.items() if letter != LETTERS[act]}


def keys(settings: Mapping[str, Any]) -> dict[str, str]:
    """The letter of each act, for this person."""
    return {**LETTERS, **settings.get("letters", {})}
