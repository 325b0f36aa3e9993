"""JSON-RPC as the exchange speaks it: reading a call, refusing it, writing the response."""

import json
from decimal import Decimal
from typing import Any, Final, Never

from starlette.requests import Request
from starlette.responses import Response

from worker.simulator.prices import is_known_ticker

MAX_BODY_BYTES: Final = 32 * 1024

Params = dict[str, Any]


class RpcError(Exception):
    """A response with `error` instead of `result`."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.member = {"code": code, "message": message} | ({} if data is None else {"data": data})


def refuse(param: str, reason: str) -> Never:
    raise RpcError(-32602, "Invalid params", {"reason": reason, "param": param})


async def read_call(request: Request) -> tuple[str, object, dict[str, Any]]:
    """The method's name without `public/`, its parameters, and `{"id": …}` if one was sent.

    The path names the method, or the body if the path is just `/api/v2`. A name without `public/` gets a slash in
    front, so that no method has it.
    """
    name: object = request.path_params.get("path")
    params: object = dict(request.query_params)
    id_member = {}
    if request.method == "POST":
        call = await _read_body(request)
        name = name or call.get("method")
        params = call.get("params", {})
        id_member = {member: value for member, value in call.items() if member == "id"}
    if not isinstance(name, str) or not isinstance(id_member.get("id"), str | int | float | None):
        raise RpcError(11050, "bad_request")
    return name.removeprefix("public/") if name.startswith("public/") else f"/{name}", params, id_member


async def _read_body(request: Request) -> dict[str, Any]:
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise RpcError(-32600, "Request entity too large")
        call = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RpcError(-32700, "Parse error", "invalid json") from error
    if not isinstance(call, dict):  # a list would be a batch, which the exchange does not accept
        raise RpcError(11050, "bad_request")
    return call


def _refuse_constant(literal: str) -> Never:
    raise ValueError(f"{literal} is not JSON")


def read_index_name(params: Params) -> str:
    ticker = _read_text(params, "index_name")
    if not is_known_ticker(ticker):
        refuse("index_name", "invalid index")
    return ticker


def read_choice(params: Params, param: str, choices: tuple[str, ...]) -> str:
    """The exchange's reason for a value outside the choices is not recorded; this is the nearest of its reasons."""
    value = _read_text(params, param)
    if value not in choices:
        refuse(param, "wrong format")
    return value


def read_integer(params: Params, param: str, low: int, high: int, default: int | None = None) -> int:
    value = params.get(param, default)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value is None:
        refuse(param, "value is required")
    if type(value) is not int or not low <= value <= high:
        refuse(param, "wrong format")
    return value


def _read_text(params: Params, param: str) -> str:
    if param not in params:
        refuse(param, "value is required")
    value = params[param]
    if not isinstance(value, str):
        refuse(param, "wrong format")
    return value


def to_json(value: object) -> str:
    """JSON text whose decimals keep every digit; `json.dumps` would convert them to floats."""
    match value:
        case Decimal():
            return format(value, "f")
        case dict():
            return "{" + ",".join(f"{json.dumps(name)}:{to_json(member)}" for name, member in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(to_json, value)) + "]"
    return json.dumps(value)


def json_response(value: object, status: int = 200) -> Response:
    return Response(to_json(value), status, {"cache-control": "no-store"}, "application/json")
