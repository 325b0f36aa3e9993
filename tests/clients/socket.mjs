// graphql-ws: a query, prices since an instant, and errors with their codes, all over one socket.
import { createClient } from "graphql-ws";

const [url, since] = process.argv.slice(2);
let sockets = 0;
const client = createClient({ url, lazy: false, retryAttempts: 0, on: { connected: () => sockets++ } });

async function take(count, query, variables) {
  const answers = [];
  try {
    for await (const answer of client.iterate({ query, variables })) if (answers.push(answer) === count) break;
  } catch (errors) {
    return errors.map((error) => error.extensions.code);
  }
  return answers.map(({ data, errors }) => (errors ? errors.map((error) => error.extensions.code) : data));
}

const prices = "subscription ($t: [String!], $s: DateTime) { priceUpdates(tickers: $t, since: $s) { price timestamp } }";
const [query, updates, unknownTicker, unknownField] = await Promise.all([
  take(1, "{ latestPrices { price } }"),
  take(2, prices, { t: ["btc_usd"], s: since }),
  take(1, prices, { t: ["doge_usd"] }),
  take(1, "subscription { nothing }"),
]);
await client.dispose();
console.log(JSON.stringify({ query, updates, unknownTicker, unknownField, sockets }));
