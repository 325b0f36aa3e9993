// Apollo Client or urql with its persisted queries, by POST and by GET: the answers, and the requests that it sent.
import { createHash } from "node:crypto";
import { ApolloClient, HttpLink, InMemoryCache, gql as apolloDocument } from "@apollo/client";
import { PersistedQueryLink } from "@apollo/client/link/persisted-queries";
import { Client, fetchExchange, gql } from "@urql/core";
import { persistedExchange } from "@urql/exchange-persisted";

const url = process.argv[2];
const documentOf = (name) => `query ${name}($limit: Int!) { priceHistory(ticker: "btc_usd", limit: $limit) { price } }`;

function recorded(requests) {
  return async (address, options) => {
    const method = options.method ?? "GET";
    const body = method === "GET" ? Object.fromEntries(new URL(address).searchParams) : JSON.parse(options.body);
    const response = await fetch(address, options);
    const { errors } = await response.clone().json();
    requests.push([method, Boolean(body.query), response.status, errors?.[0].extensions.code ?? "ok"]);
    return response;
  };
}

async function withApollo(name, useGETForHashedQueries) {
  const requests = [];
  const sha256 = (text) => createHash("sha256").update(text).digest("hex");
  const link = new PersistedQueryLink({ sha256, useGETForHashedQueries }).concat(
    new HttpLink({ uri: url, fetch: recorded(requests) }),
  );
  const client = new ApolloClient({ link, cache: new InMemoryCache() });
  const prices = [];
  for (const limit of [1, 2]) {
    const query = apolloDocument(documentOf(name));
    const { data } = await client.query({ query, variables: { limit }, fetchPolicy: "no-cache" });
    prices.push(data.priceHistory.map(({ price }) => price));
  }
  return { prices, requests };
}

async function withUrql(name, preferGetForPersistedQueries) {
  const requests = [];
  const client = new Client({
    url,
    exchanges: [persistedExchange({ preferGetForPersistedQueries }), fetchExchange],
    fetch: recorded(requests),
    preferGetMethod: false,
  });
  const prices = [];
  for (const limit of [1, 2]) {
    const { data, error } = await client.query(gql(documentOf(name)), { limit }).toPromise();
    if (error) throw error;
    prices.push(data.priceHistory.map(({ price }) => price));
  }
  return { prices, requests };
}

const ask = { apollo: withApollo, urql: withUrql }[process.argv[3]];
console.log(JSON.stringify({ POST: await ask("ByPost", false), GET: await ask("ByGet", true) }));
