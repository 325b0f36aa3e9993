"""The schema is the contract: names, arguments, defaults and nullability, and a description for everything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphql import GraphQLEnumType, GraphQLSchema, build_schema, print_ast

from server.schema.root import schema

SDL_FILE = Path(__file__).parents[3] / "server/schema/schema.graphql"
SERVED = build_schema(schema.as_str())
BUILT_IN = {"Boolean", "Float", "ID", "Int", "String"}

CONTRACT = """
scalar Decimal
scalar DateTime
enum PriceSource { SCHEDULED REQUESTED RECOVERED BACKFILLED }
enum CandleInterval {
  ONE_MINUTE THREE_MINUTES FIVE_MINUTES FIFTEEN_MINUTES THIRTY_MINUTES
  ONE_HOUR TWO_HOURS FOUR_HOURS SIX_HOURS TWELVE_HOURS ONE_DAY ONE_WEEK
}
enum FetchStatus { QUEUED RUNNING SUCCEEDED PARTIAL FAILED }
enum GapReason { NOT_COLLECTED EXCHANGE_ERROR REJECTED_VALUE STORAGE_ERROR }
type Price {
  ticker: String!
  price: Decimal!
  timestamp: DateTime!
  observedAt: DateTime!
  source: PriceSource!
  testnet: Boolean!
  cursor: ID!
}
type Candle {
  ticker: String!
  start: DateTime!
  open: Decimal!
  high: Decimal!
  low: Decimal!
  close: Decimal!
  samples: Int!
  complete: Boolean!
}
type Coverage {
  expected: Int!
  present: Int!
  observed: Int!
  averaged: Int!
  dropped: Int!
  ratio: Float!
  complete: Boolean!
  gaps(limit: Int! = 100): [Gap!]!
}
type Gap { fromDt: DateTime! toDt: DateTime! missing: Int! reason: GapReason! detail: String }
type Ticker {
  name: String!
  intervalSeconds: Int!
  latest: Price
  lagSeconds: Float
  stale: Boolean!
  firstTimestamp: DateTime
  keptFrom: DateTime
  fillingTo: DateTime
}
type PriceAt { at: DateTime! price: Price ageSeconds: Float gap: Gap }
type Statistics {
  open: Price
  close: Price
  high: Price
  low: Price
  change: Decimal
  changePercent: Decimal
  twap: Decimal
  realizedVolatility: Float
  samples: Int!
  coverage: Coverage!
}
type FetchJob {
  id: ID!
  status: FetchStatus!
  tickers: [String!]!
  enqueuedAt: DateTime!
  startedAt: DateTime
  finishedAt: DateTime
  prices: [Price!]!
  failures: [FetchFailure!]!
}
type FetchFailure { ticker: String! code: String! message: String! }
type Query {
  latestPrice(ticker: String!, maxAgeSeconds: Int): Price
  latestPrices(tickers: [String!]): [Price!]
  priceHistory(ticker: String!, limit: Int! = 100, before: DateTime): [Price!]
  pricesInPeriod(ticker: String!, fromDt: DateTime!, toDt: DateTime!, limit: Int! = 100, after: DateTime): [Price!]
  candles(ticker: String!, interval: CandleInterval!, fromDt: DateTime!, toDt: DateTime!, limit: Int! = 500): [Candle!]
  coverage(ticker: String!, fromDt: DateTime!, toDt: DateTime!): Coverage
  pricesAt(ticker: String!, at: [DateTime!]!, toleranceSeconds: Int): [PriceAt!]
  statistics(ticker: String!, fromDt: DateTime!, toDt: DateTime!): Statistics
  tickers: [Ticker!]
  fetchJob(id: ID!): FetchJob
}
type Mutation {
  fetchPrices(tickers: [String!]): FetchJob!
}
type Subscription {
  priceUpdates(tickers: [String!], since: DateTime, after: ID): Price!
  fetchProgress(id: ID!): FetchJob!
}
"""


def own_types(built: GraphQLSchema) -> dict[str, Any]:
    return {
        name: graphql_type
        for name, graphql_type in built.type_map.items()
        if not name.startswith("__") and name not in BUILT_IN
    }


def shapes(built: GraphQLSchema) -> dict[str, object]:
    """`Type` -> its kind and an enum's values, `Type.field` -> its type and its arguments in order."""
    found: dict[str, object] = {}
    for name, graphql_type in own_types(built).items():
        values = list(graphql_type.values) if isinstance(graphql_type, GraphQLEnumType) else []
        found[name] = (type(graphql_type).__name__, values)
        for field_name, field in getattr(graphql_type, "fields", {}).items():
            arguments = [
                (key, str(argument.type), print_ast(node.default_value) if node.default_value else None)
                for key, argument in field.args.items()
                if (node := argument.ast_node)
            ]
            found[f"{name}.{field_name}"] = (str(field.type), arguments)
    return found


def described(built: GraphQLSchema) -> Iterator[tuple[str, str | None]]:
    for name, graphql_type in own_types(built).items():
        yield name, graphql_type.description
        for value_name, value in getattr(graphql_type, "values", {}).items():
            yield f"{name}.{value_name}", value.description
        for field_name, field in getattr(graphql_type, "fields", {}).items():
            yield f"{name}.{field_name}", field.description
            for argument_name, argument in field.args.items():
                yield f"{name}.{field_name}({argument_name})", argument.description


def test_the_schema_is_the_contracts() -> None:
    contract, served = shapes(build_schema(CONTRACT)), shapes(SERVED)
    assert served == {name: contract.get(name) for name in served}
    assert {name for name in contract if name not in served} == set()


def test_everything_is_described() -> None:
    descriptions = list(described(SERVED))
    assert len(descriptions) > 50
    assert [name for name, text in descriptions if not (text or "").strip()] == []


def test_the_exported_schema_is_the_one_that_is_served() -> None:
    assert SDL_FILE.read_text(encoding="utf-8") == schema.as_str() + "\n", "run: make sdl"
