"""The OpenAPI 3.1 document of the socket API, made from the structures that answers are made of.

`docs/openapi.json` is what this script prints (`make openapi`); a test keeps the two the same.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any, Final, get_args

import msgspec

from syncd import __version__
from syncd.api.actions import ResendReport, RetryReport, TestReport
from syncd.api.report import (
    RefreshReport,
    Refusal,
    SecretsReport,
    StatusReport,
)
from syncd.api.rotations import DEFAULT, MOST, HistoryReport
from syncd.api.subscribers import MOST_FILTERS
from syncd.core.events import WIRE_DATA, WIRE_TYPES

_REF: Final = "#/components/schemas/{name}"
_DENIED: Final = "The uid of the caller has no entry in api.subscribers."
_MALFORMED: Final = "A query parameter is unknown or malformed."
_UNUSABLE: Final = (
    "The ledger cannot be used, too many callers are connected, or earlier requests of the same "
    "user are not finished."
)
_TOO_LARGE: Final = "The request has a body, and a large one."
_STREAM: Final = (
    "Server-Sent Events (WHATWG HTML section 9.2). Each event's `id` is its CloudEvents id, "
    "`event` its CloudEvents type and `data` the CloudEvent: a `SecretChanged`, "
    "`SecretAdopted`, `SecretRejected`, `SecretConverged`, `SecretDiverged`, "
    "`VaultConfigChanged` or `Reset`. A block without data only "
    "moves the position that a client resumes from. A comment comes every 15 seconds. A subscriber "
    "that does not read is disconnected."
)


_BLOCK: Final[dict[str, Any]] = {
    "type": "object",
    "description": "One event of the stream (as OpenAPI 3.2 describes them)",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": list(WIRE_DATA)},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "oneOf": [
                    {"$ref": _REF.format(name=type_.__name__.lstrip("_"))}
                    for type_ in get_args(WIRE_TYPES)
                ]
            },
        },
        "retry": {"type": "integer"},
    },
    "required": ["id", "event", "data"],
}


def document() -> dict[str, Any]:
    """The whole document."""
    answers = [
        *(
            SecretsReport,
            StatusReport,
            HistoryReport,
            RefreshReport,
            RetryReport,
            ResendReport,
            TestReport,
            Refusal,
        ),
        WIRE_TYPES,
    ]
    _, components = msgspec.json.schema_components(answers, ref_template=_REF)
    schemas = {name.lstrip("_"): schema for name, schema in components.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "syncd",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": (
                "What syncd answers on its Unix socket (`api.socket`). The kernel tells who asks "
                "(SO_PEERCRED), so there are no credentials to send; every caller sees only the "
                "secrets within its scope."
            ),
        },
        "servers": [{"url": "http://syncd", "description": "Any host name, over the Unix socket"}],
        "paths": {
            "/v1/secrets": {
                "get": _operation("secrets", "State of every secret", SecretsReport.__name__, 503)
            },
            "/v1/status": {
                "get": _operation("status", "Health of the daemon", StatusReport.__name__, 503)
            },
            "/v1/events": {"get": _events()},
            "/v1/history": {"get": _history()},
            "/v1/refresh": {"post": _refresh()},
            "/v1/consumers/{name}/retry": {"post": _retry()},
            "/v1/consumers/{name}/resend": {"post": _resend()},
            "/v1/consumers/{name}/test": {"post": _test()},
        },
        "components": {"schemas": _renamed(schemas)},
    }


def _events() -> dict[str, Any]:
    text = {"type": "string"}
    several = {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "maxItems": MOST_FILTERS,
    }
    operation = _operation("events", "Past events and those to come", None, 503)
    operation["responses"]["200"] = {
        "description": _STREAM,
        "content": {"text/event-stream": {"schema": _BLOCK}},
    }
    operation["parameters"] = [
        _parameter(
            "after",
            "Id of the last event that the caller has, or `start` for all that are held. A "
            "position that the log does not hold begins the stream with `io.syncd.reset`. "
            "Without one a stream that follows begins now, and one that does not with the oldest "
            "event.",
            text,
        ),
        _parameter("follow", "`false` ends the stream after what is there.", {"type": "boolean"}),
        _parameter("secret", "Only events of these secrets.", several),
        _parameter(
            "resource",
            "Only events of secrets that these resources, `Type` or `Type/id`, may use.",
            {
                **several,
                "items": {"type": "string", "pattern": "^[^/]+(/[\\s\\S]+)?$"},
            },
        ),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "As `after`, and goes before it: what an EventSource sends by itself.",
            "schema": text,
        },
    ]
    return operation


def _history() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    several = {"type": "array", "items": text, "maxItems": MOST_FILTERS}
    operation = _operation("history", "What became of rotations", HistoryReport.__name__, 503)
    operation["parameters"] = [
        _parameter("secret", "Only rotations of these secrets.", several),
        _parameter(
            "resource",
            "Only rotations of secrets that these resources, `Type` or `Type/id`, may use.",
            {**several, "items": {"type": "string", "pattern": "^[^/]+(/[\\s\\S]+)?$"}},
        ),
        _parameter("consumer", "Only what concerns this consumer.", {"type": "string"}),
        _parameter(
            "limit",
            "How many rotations, the newest.",
            {"type": "integer", "minimum": 1, "maximum": MOST, "default": DEFAULT},
        ),
    ]
    return operation


def _retry() -> dict[str, Any]:
    operation = _of_consumer("retry", "Try now what waits, regardless of the backoff")
    operation["responses"]["202"] = _answer("It is tried now.", RetryReport.__name__)
    return operation


def _test() -> dict[str, Any]:
    operation = _of_consumer("test", "Test the way to a consumer now")
    operation["responses"] |= {
        "200": _answer("It was tried, and acknowledged or not.", TestReport.__name__),
        "409": _answer("This kind of consumer takes no ping.", Refusal.__name__),
    }
    return operation


def _resend() -> dict[str, Any]:
    operation = _of_consumer("resend", "Send the newest state again")
    description = "Only this secret; by default all that the consumer may see."
    operation["parameters"].append(_parameter("secret", description, {"type": "string"}))
    operation["responses"] |= {
        "202": _answer("It is sent.", ResendReport.__name__),
        "409": _answer("There is nothing to send, or this is a relay.", Refusal.__name__),
    }
    return operation


def _of_consumer(name: str, summary: str) -> dict[str, Any]:
    operation = _operation(name, summary, None, 503)
    operation["description"] = "For root and the daemon's own user."
    operation["parameters"] = [
        {
            "name": "name",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
        }
    ]
    operation["responses"]["404"] = _answer("There is no such consumer.", Refusal.__name__)
    return operation


def _refresh() -> dict[str, Any]:
    operation = _operation("refresh", "Ask every provider now", None, 503)
    operation["description"] = "For root and the daemon's own user."
    operation["responses"] |= {
        "202": _answer("The providers were asked.", RefreshReport.__name__),
        "404": _answer("Nothing is provisioned.", Refusal.__name__),
    }
    return operation


def _operation(name: str, summary: str, answer: str | None, *also: int) -> dict[str, Any]:
    refusals = {400: _MALFORMED, 403: _DENIED, 413: _TOO_LARGE, 503: _UNUSABLE}
    responses = {
        str(status): _answer(description, Refusal.__name__)
        for status, description in refusals.items()
        if status < 500 or status in also  # noqa: PLR2004 - server errors
    }
    if answer is not None:
        responses["200"] = _answer(f"{summary}.", answer)
    return {"operationId": name, "summary": summary, "responses": responses}


def _answer(description: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": _REF.format(name=schema)}
    return {"description": description, "content": {"application/json": {"schema": reference}}}


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _renamed(tree: Any) -> Any:  # noqa: ANN401 - a JSON document
    """Drops the leading underscore of structures that only describe the wire.

    Descriptions are docstrings, which Python dedents from 3.13 on: here always.
    """
    if isinstance(tree, dict):
        return {
            key: inspect.cleandoc(value)
            if key == "description" and isinstance(value, str)
            else _renamed(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [_renamed(item) for item in tree]
    if isinstance(tree, str) and tree.startswith("#/components/schemas/_"):
        return tree.replace("/_", "/", 1)
    return tree.lstrip("_") if isinstance(tree, str) and tree.startswith("_") else tree


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document()), indent=2).decode() + "\n")
