// graphql-request: a query, an error and its code, a mutation.
import { ClientError, GraphQLClient, gql } from "graphql-request";

const client = new GraphQLClient(process.argv[2]);
const history = gql`
  query History($ticker: String!) { priceHistory(ticker: $ticker) { price timestamp } }
`;
const { priceHistory } = await client.request(history, { ticker: "btc_usd" });

const codes = [];
for (const [document, variables] of [[history, { ticker: "doge_usd" }], [history, {}], ["{", {}]]) {
  try {
    await client.request(document, variables);
  } catch (error) {
    if (!(error instanceof ClientError)) throw error;
    codes.push([error.response.status, error.response.errors[0].extensions.code]);
  }
}
const { fetchPrices } = await client.request("mutation { fetchPrices { status } }");
console.log(JSON.stringify({ priceHistory, codes, fetchPrices }));
