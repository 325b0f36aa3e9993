"""All transports of GraphQL: POST and GET, each with both JSON types and an event stream, and a socket."""

import json
from typing import Any

from tests.integration.live import LiveApi

Answer = dict[str, Any]
JSON, GRAPHQL_RESPONSE, EVENT_STREAM = "application/json", "application/graphql-response+json", "text/event-stream"
WAYS = [f"{method} {accept}" for method in ("POST", "GET") for accept in (JSON, GRAPHQL_RESPONSE, EVENT_STREAM)]
WAYS.append("socket")


async def ask(live: LiveApi, way: str, query: str, variables: Answer | None = None) -> Answer:
    """The answer to a query over one of the transports."""
    if way == "socket":
        async with live.socket() as socket:
            await socket.send(type="subscribe", id="1", payload={"query": query, "variables": variables})
            message = await socket.receive()
        answer: Answer = message["payload"] if message["type"] == "next" else {"errors": message["payload"]}
        return answer
    method, accept = way.split()
    asked: Answer = {"query": query} | ({"variables": variables} if variables else {})
    if method == "GET":
        asked |= {"variables": json.dumps(variables)} if variables else {}
        response = await live.http.get("/graphql", params=asked, headers={"accept": accept})
    else:
        response = await live.http.post("/graphql", json=asked, headers={"accept": accept})
    text = response.text
    if accept == EVENT_STREAM:
        [text] = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    parsed: Answer = json.loads(text)
    return parsed


def refusals(answer: Answer) -> set[tuple[str, str]]:
    return {(error["extensions"]["code"], error["message"]) for error in answer.get("errors", [])}
