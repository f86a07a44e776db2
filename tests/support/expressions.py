"""Evaluates the subset of DynamoDB's expressions that the functions use."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Item = dict[str, dict[str, Any]]

RESERVED = {"all", "name", "owner", "role", "shard", "status", "timestamp", "token", "ttl", "type", "user"}
"""Reserved words that could be used as attribute names by mistake [DynamoDB, Reserved words]."""

_TOKEN = re.compile(r"\s*(<>|<=|>=|[=<>(),]|[#:]?\w+)")


@dataclass(frozen=True)
class Condition:
    """A condition, and the attributes that it compares with `=` at its top level."""

    matches: Callable[[Item], bool]
    equal: frozenset[str] = frozenset()


class Expressions:
    """The expressions of one request. Raises `refusal("ValidationException", ...)` where DynamoDB does."""

    def __init__(self, given: dict[str, Any], refusal: Callable[[str, str], Exception]) -> None:
        self._names: dict[str, str] = given.get("ExpressionAttributeNames", {})
        self._values: Item = given.get("ExpressionAttributeValues", {})
        self._unused = {*self._names, *self._values}
        self._refusal = refusal
        self._tokens: list[str] = []

    def matches(self, condition: str, item: Item) -> bool:
        """Whether a condition or filter is true for an item."""
        return self.condition(condition).matches(item)

    def condition(self, text: str) -> Condition:
        """Parse a condition, filter or key condition."""
        self._tokens = self._split(text)
        condition = self._or()
        if self._tokens:
            raise self._invalid(f"unexpected {self._tokens[0]}")
        return condition

    def projected(self, projection: str | None, item: Item) -> Item:
        """The attributes of an item that a projection selects."""
        if projection is None:
            return dict(item)
        names = [self._name(part.strip()) for part in projection.split(",")]
        return {name: item[name] for name in names if name in item}

    def updated(self, text: str, item: Item) -> Item:
        """An item after `SET a = :v, b = if_not_exists(b, :v)`, `REMOVE a, ...` and `ADD set :v` clauses."""
        item = dict(item)
        for clause, body in re.findall(r"(SET|ADD|REMOVE) (.+?)(?= SET | ADD | REMOVE |$)", text):
            for assignment in re.split(r",(?![^(]*\))", body):
                if clause == "REMOVE":
                    item.pop(self._name(assignment.strip()), None)
                    continue
                place, value = re.split(r" = | ", assignment.strip(), maxsplit=1)
                name = self._name(place)
                if default := re.fullmatch(r"if_not_exists\((\S+), (\S+)\)", value):
                    value = default[2]
                given = (
                    item.get(self._name(default[1]), self._value(value)) if default else self._value(value)
                )
                if clause == "ADD":
                    if not given["SS"] or len(set(given["SS"])) < len(given["SS"]):
                        raise self._invalid("a set is empty or contains duplicates")
                    given = {"SS": sorted({*item.get(name, {"SS": []})["SS"], *given["SS"]})}
                item[name] = given
        return item

    def refuse_unused(self) -> None:
        """Reject unused names and values. Call this after all expressions have been evaluated."""
        if self._unused:
            raise self._invalid(f"unused in expressions: {self._unused}")

    def _or(self) -> Condition:
        left = self._and()
        while self._accept("OR"):
            left = Condition(_either(left, self._and()))
        return left

    def _and(self) -> Condition:
        left = self._not()
        while self._accept("AND"):
            right = self._not()
            left = Condition(_both(left, right), left.equal | right.equal)
        return left

    def _not(self) -> Condition:
        if self._accept("NOT"):
            inner = self._not()
            return Condition(lambda item: not inner.matches(item))
        if self._accept("("):
            condition = self._or()
            self._expect(")")
            return condition
        return self._comparison()

    def _comparison(self) -> Condition:
        first = self._tokens.pop(0)
        if first in ("attribute_exists", "attribute_not_exists"):
            self._expect("(")
            name = self._name(self._tokens.pop(0))
            self._expect(")")
            return Condition(lambda item: (name in item) == (first == "attribute_exists"))
        name = self._name(first)
        operator = self._tokens.pop(0)
        if operator == "IN":
            self._expect("(")
            values = [self._value(self._tokens.pop(0))]
            while self._accept(","):
                values.append(self._value(self._tokens.pop(0)))
            self._expect(")")
            if len(values) > 100:
                raise self._invalid("IN takes at most 100 operands")
            return Condition(lambda item: item.get(name) in values)
        value = self._value(self._tokens.pop(0))
        match operator:
            case "=":
                return Condition(lambda item: item.get(name) == value, frozenset({name}))
            case "<":
                return Condition(lambda item: name in item and _comparable(item[name]) < _comparable(value))
            case ">":
                return Condition(lambda item: name in item and _comparable(item[name]) > _comparable(value))
        raise self._invalid(f"no operator {operator} here")

    def _split(self, text: str) -> list[str]:
        tokens = _TOKEN.findall(text)
        if re.sub(r"\s", "", text) != "".join(tokens):
            raise self._invalid(f"cannot read {text}")
        return list(tokens)

    def _accept(self, token: str) -> bool:
        if self._tokens and self._tokens[0] == token:
            self._tokens.pop(0)
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            raise self._invalid(f"{token} is missing")

    def _name(self, text: str) -> str:
        if text.startswith("#"):
            self._unused.discard(text)
            return self._names[text]
        if text.lower() in RESERVED:
            raise self._invalid(f"{text} is a reserved word")
        return text

    def _value(self, text: str) -> dict[str, Any]:
        self._unused.discard(text)
        return self._values[text]

    def _invalid(self, why: str) -> Exception:
        return self._refusal("ValidationException", why)


def _either(left: Condition, right: Condition) -> Callable[[Item], bool]:
    return lambda item: left.matches(item) or right.matches(item)


def _both(left: Condition, right: Condition) -> Callable[[Item], bool]:
    return lambda item: left.matches(item) and right.matches(item)


def _comparable(value: dict[str, Any]) -> tuple[str, Any]:
    ((kind, content),) = value.items()
    return kind, int(content) if kind == "N" else content
