import { useGraphiQL } from "@graphiql/react";
import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { GraphiQL, type GraphiQLProps } from "graphiql";
import { GraphQLError } from "graphql";
import { type Client, createClient } from "graphql-ws";
import { type ReactNode, useEffect, useState } from "react";
import { storage } from "./storage";

type Props = Omit<GraphiQLProps, "fetcher"> & { url: string };
type Fetcher = GraphiQLProps["fetcher"];

export function Page({ url, ...props }: Props) {
  const [jobId, setJobId] = useState("");
  const [fetcher] = useState(() => fetcherOf(url, setJobId));
  return (
    <GraphiQL fetcher={fetcher} storage={storage} shouldPersistHeaders={false} {...props}>
      <GraphiQL.Logo>
        <a className="graphiql-logo-link" href="./">
          Dashboard
        </a>
      </GraphiQL.Logo>
      <GraphiQL.Toolbar>
        {({ prettify, merge, copy }) => (
          <>
            {prettify}
            {merge}
            {copy}
            <JobId id={jobId} />
          </>
        )}
      </GraphiQL.Toolbar>
    </GraphiQL>
  );
}

/** Queries and mutations over HTTP, subscriptions over a socket with the tab's headers in its `connection_init`. */
function fetcherOf(url: string, onJob: (id: string) => void): Fetcher {
  return async (params, options) => {
    const wsClient = socketOf(url, options?.headers);
    const answer = await createGraphiQLFetcher({ url, wsClient, enableIncrementalDelivery: false })(params, options);
    const job = "data" in answer ? (answer.data as { fetchPrices?: { id?: string } } | null)?.fetchPrices : null;
    if (job?.id) onJob(job.id);
    return answer;
  };
}

/** Opens a socket for a subscription. The reason for closing it becomes an error of the result. */
function socketOf(url: string, headers?: Record<string, unknown>): Client {
  const client = createClient({
    url: url.replace(/^http/, "ws"),
    ...(headers && { connectionParams: headers }),
    // Codes from 4000 on are the server's refusals, which a retry would not change.
    shouldRetry: (reason) => reason instanceof CloseEvent && reason.code < 4000,
  });
  return {
    ...client,
    subscribe: (payload, sink) =>
      client.subscribe(payload, {
        ...sink,
        // GraphiQL would leave an unhandled rejection and show a stack trace.
        error: (error) => {
          sink.next({ errors: errorsOf(error) });
          sink.complete();
        },
      }),
  };
}

function errorsOf(error: unknown): GraphQLError[] {
  if (Array.isArray(error)) return error;
  if (error instanceof CloseEvent) {
    return [new GraphQLError(`The server closed the socket: ${error.code} ${error.reason}`.trim())];
  }
  return [new GraphQLError(error instanceof Error ? error.message : "The socket could not be opened.")];
}

/** Puts the id of the requested fetch into the variables of the tab, for the subscription to its progress. */
function JobId({ id }: { id: string }): ReactNode {
  const editor = useGraphiQL((state) => state.variableEditor);
  useEffect(() => {
    if (!id || !editor) return;
    try {
      const variables: unknown = JSON.parse(editor.getValue() || "{}");
      if (typeof variables === "object" && variables !== null && "id" in variables) {
        editor.setValue(JSON.stringify({ ...variables, id }, null, 2));
      }
    } catch {
      // The user is still typing the variables.
    }
  }, [id, editor]);
  return null;
}
