"""All exhibits."""

from zoo import language, perception, structures

EXHIBITS = [*language.EXHIBITS, *perception.EXHIBITS, *structures.EXHIBITS]
