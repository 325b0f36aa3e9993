// Mercurius on Fastify with graphql-jit; node-postgres with named, so prepared, statements.
import Fastify from "fastify";
import { GraphQLScalarType } from "graphql";
import mercurius from "mercurius";
import pg from "pg";

const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  max: 10,
  options: "-c plan_cache_mode=force_generic_plan -c jit=off",
});
const columns = "ticker, price, timestamp, observed_at, source, testnet";

const candles = `select ticker, start, open, high, low, close, samples, get_bit(seconds, 0) = 1 as complete
  from candle_minutes where ticker = $1 and start >= $2 and start <= $3 order by start limit $4`;

async function select(name, where, values) {
  const { rows } = await pool.query({ name, text: `select ${columns} from prices where ${where}`, values });
  return rows;
}

const schema = `
  scalar Decimal
  scalar DateTime
  enum PriceSource { SCHEDULED REQUESTED BACKFILLED }
  type Price {
    ticker: String!
    price: Decimal!
    timestamp: DateTime!
    observedAt: DateTime!
    source: PriceSource!
    testnet: Boolean!
  }
  enum CandleInterval { ONE_MINUTE }
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
  type Query {
    latestPrice(ticker: String!): Price
    priceHistory(ticker: String!, limit: Int! = 100): [Price!]
    pricesInPeriod(ticker: String!, fromDt: DateTime!, toDt: DateTime!, limit: Int! = 100): [Price!]
    candles(
      ticker: String!, interval: CandleInterval!, fromDt: DateTime!, toDt: DateTime!, limit: Int! = 500
    ): [Candle!]
  }
`;

const resolvers = {
  DateTime: new GraphQLScalarType({
    name: "DateTime",
    serialize: (value) => value.toISOString(),
    parseValue: (value) => new Date(value),
  }),
  Query: {
    latestPrice: async (_, { ticker }) =>
      (await select("latest", "ticker = $1 order by timestamp desc limit 1", [ticker]))[0] ?? null,
    priceHistory: (_, { ticker, limit }) =>
      select("history", "ticker = $1 order by timestamp desc limit $2", [ticker, limit]),
    pricesInPeriod: (_, { ticker, fromDt, toDt, limit }) =>
      select("period", "ticker = $1 and timestamp >= $2 and timestamp <= $3 order by timestamp limit $4", [
        ticker, fromDt, toDt, limit,
      ]),
    candles: async (_, { ticker, fromDt, toDt, limit }) =>
      (await pool.query({ name: "candles", text: candles, values: [ticker, fromDt, toDt, limit] })).rows,
  },
  Price: { observedAt: (row) => row.observed_at },
};

const app = Fastify();
await app.register(mercurius, { schema, resolvers, jit: 1 });
await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
