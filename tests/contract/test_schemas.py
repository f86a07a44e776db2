"""The schemas are closed, described and checked by examples; asyncapi.yaml covers the whole WebSocket API."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLES = SCHEMAS / "examples"
BASE = "https://muster.example/schemas/v1/"
COMMON = "common"

Json = dict[str, Any]


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


FILES = {
    path.name.removesuffix(".schema.json"): _load(path) for path in sorted(SCHEMAS.glob("*.schema.json"))
}
MESSAGES = sorted(FILES.keys() - {COMMON})
CLIENT = [name for name in FILES if name.startswith("client-")]
SERVER = [name for name in FILES if name.startswith("server-")]
REGISTRY: Registry[Any] = Registry().with_resources(
    (schema["$id"], Resource.from_contents(schema)) for schema in FILES.values()
)
ASYNCAPI = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))


def _pointer(parts: Any) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _refusals(name: str, instance: Any) -> list[tuple[str, str]]:
    """Return the pointer and the keyword of every fault that the schema finds."""
    errors = Draft202012Validator(FILES[name], registry=REGISTRY).iter_errors(instance)
    return [(_pointer(error.absolute_path), str(error.validator)) for error in errors]


def _definitions(schema: Json, where: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the schema and those of its parts, without conditional subschemas: they only narrow these."""
    yield where, schema
    for keyword in ("properties", "$defs"):
        for key, part in schema.get(keyword, {}).items():
            yield from _definitions(part, f"{where}/{keyword}/{key}")
    if "items" in schema:
        yield from _definitions(schema["items"], f"{where}/items")


def _nodes(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(part)


def _valid_examples() -> list[Any]:
    return [
        pytest.param(path.parent.parent.name, path, id=f"{path.parent.parent.name}-{path.stem}")
        for path in sorted(EXAMPLES.glob("*/valid/*.json"))
    ]


def _refused_examples() -> list[Any]:
    return [
        pytest.param(path.parent.name, example, id=f"{path.parent.name}-{example['name']}")
        for path in sorted(EXAMPLES.glob("*/refusals.json"))
        for example in _load(path)
    ]


@pytest.mark.parametrize("name", FILES)
class TestEverySchema:
    def test_is_a_valid_schema(self, name: str) -> None:
        assert FILES[name]["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
        Draft202012Validator.check_schema(FILES[name])

    def test_id_follows_from_the_file_name(self, name: str) -> None:
        assert FILES[name]["$id"] == f"{BASE}{name}.schema.json"

    def test_every_reference_resolves_within_the_directory(self, name: str) -> None:
        resolver = REGISTRY.resolver(base_uri=FILES[name]["$id"])
        for node in _nodes(FILES[name]):
            if isinstance(node.get("$ref"), str):
                resolver.lookup(node["$ref"])

    def test_is_closed(self, name: str) -> None:
        opened = [
            where
            for where, part in _definitions(FILES[name])
            if part.get("type") == "object" and part.get("additionalProperties") is not False
        ]
        assert opened == (["/$defs/payload"] if name == COMMON else [])

    def test_names_and_describes_every_part(self, name: str) -> None:
        undescribed = [
            where
            for where, part in _definitions(FILES[name])
            if not where.endswith("/items") and not (part.get("title") and part.get("description"))
        ]
        assert undescribed == []

    def test_requires_only_defined_properties(self, name: str) -> None:
        for where, part in _definitions(FILES[name]):
            assert set(part.get("required", ())) <= part.get("properties", {}).keys(), where

    def test_every_forbidden_property_has_a_description(self, name: str) -> None:
        assert all(node.get("description") for node in _nodes(FILES[name]) if node.get("not") == {})

    def test_has_no_alternatives(self, name: str) -> None:
        """oneOf and anyOf reject the whole value, which hides the part that is at fault."""
        assert not any({"oneOf", "anyOf"} & node.keys() for node in _nodes(FILES[name]))


@pytest.mark.parametrize("name", MESSAGES)
def test_has_at_least_two_valid_and_four_refused_examples(name: str) -> None:
    assert len(list((EXAMPLES / name).glob("valid/*.json"))) >= 2
    assert len({example["name"] for example in _load(EXAMPLES / name / "refusals.json")}) >= 4


@pytest.mark.parametrize("name", MESSAGES)
def test_only_an_object_is_a_message(name: str) -> None:
    values: list[Any] = [[], "text", 1, None]
    for instance in values:
        assert _refusals(name, instance) == [("", "type")]


def test_every_folder_of_examples_belongs_to_a_schema() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir()) == MESSAGES


def test_every_file_among_the_examples_is_read() -> None:
    """A misplaced file would be an example that no test runs."""
    files = {path for path in EXAMPLES.rglob("*") if path.is_file()}
    assert files == {*EXAMPLES.glob("*/valid/*.json"), *EXAMPLES.glob("*/refusals.json")}


@pytest.mark.parametrize("name", MESSAGES)
def test_refused_examples_are_sorted_by_unique_names(name: str) -> None:
    names = [example["name"] for example in _load(EXAMPLES / name / "refusals.json")]
    assert names == sorted(set(names))


@pytest.mark.parametrize(("name", "path"), _valid_examples())
def test_valid_example_is_accepted(name: str, path: Path) -> None:
    assert _refusals(name, _load(path)) == []


@pytest.mark.parametrize(("name", "example"), _refused_examples())
def test_refused_example_has_exactly_the_named_fault(name: str, example: Json) -> None:
    """One mistake gives one fault, so that a client sees the mistake and not its consequences."""
    assert list(example) == ["name", "why", "value", "fault"]
    assert list(example["fault"]) == ["pointer", "keyword"]
    fault = (example["fault"]["pointer"], example["fault"]["keyword"])
    assert _refusals(name, example["value"]) == [fault]


def test_every_fault_of_a_message_is_reported() -> None:
    request: Json = {
        "type": "warning",
        "target": {"all": True, "users": ["a b"]},
        "payload": [],
        "offline": None,
    }
    assert sorted(_refusals("broadcast", request)) == [
        ("/offline", "enum"),
        ("/payload", "type"),
        ("/target/users", "not"),
        ("/target/users/0", "pattern"),
        ("/type", "enum"),
    ]


def test_length_of_an_envelope_is_limited() -> None:
    batch = _load(EXAMPLES / "delivery-batch/valid/one-connection.json")
    assert _refusals("delivery-batch", batch | {"envelope": "x" * 30720}) == []
    assert _refusals("delivery-batch", batch | {"envelope": "x" * 30721}) == [("/envelope", "maxLength")]


def test_a_batch_has_at_most_a_thousand_connections() -> None:
    batch = _load(EXAMPLES / "delivery-batch/valid/one-connection.json")
    assert _refusals("delivery-batch", batch | {"connections": batch["connections"] * 1000}) == []
    assert _refusals("delivery-batch", batch | {"connections": batch["connections"] * 1001}) == [
        ("/connections", "maxItems")
    ]


class TestAsyncApi:
    def test_every_reference_resolves(self) -> None:
        for node in _nodes(ASYNCAPI):
            ref = node.get("$ref")
            if ref is None:
                continue
            file, _, fragment = ref.partition("#")
            if file:
                assert (SCHEMAS / file).is_file(), ref
                continue
            found = ASYNCAPI
            for part in fragment.strip("/").split("/"):
                found = found[part]

    def test_every_client_action_and_server_type_has_a_message(self) -> None:
        described = {message["payload"]["$ref"] for message in ASYNCAPI["components"]["messages"].values()}
        assert described == {f"./{name}.schema.json" for name in [*CLIENT, *SERVER, "envelope"]}

    def test_the_channel_carries_every_message(self) -> None:
        assert ASYNCAPI["channels"]["socket"]["messages"] == {
            key: {"$ref": f"#/components/messages/{key}"} for key in ASYNCAPI["components"]["messages"]
        }

    def test_every_client_action_may_get_an_error_as_reply(self) -> None:
        sent = [operation for operation in ASYNCAPI["operations"].values() if operation["action"] == "send"]
        payloads = [_payload(ref) for operation in sent for ref in operation["messages"]]
        assert sorted(payloads) == sorted(f"./{name}.schema.json" for name in CLIENT)
        for operation in sent:
            assert "./server-error.schema.json" in map(_payload, operation["reply"]["messages"])

    def test_every_server_message_is_a_reply_or_is_received(self) -> None:
        arriving: set[str] = set()
        for operation in ASYNCAPI["operations"].values():
            received = operation["action"] == "receive"
            arriving |= set(
                map(_payload, operation["messages"] if received else operation["reply"]["messages"])
            )
        assert arriving == {f"./{name}.schema.json" for name in [*SERVER, "envelope"]}


def _payload(message: dict[str, str]) -> str:
    """Return the schema file of a message that the channel refers to."""
    payload: str = ASYNCAPI["components"]["messages"][message["$ref"].rpartition("/")[2]]["payload"]["$ref"]
    return payload
