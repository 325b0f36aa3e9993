import { useGraphiQL } from "@graphiql/react";
import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { GraphiQL, type GraphiQLProps } from "graphiql";
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
        <a className="graphiql-logo-link" href="/">
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

/** Queries and mutations over HTTP, subscriptions over a socket whose `connection_init` carries the tab's headers. */
function fetcherOf(url: string, onJob: (id: string) => void): Fetcher {
  const execute = createGraphiQLFetcher({
    url,
    subscriptionUrl: url.replace(/^http/, "ws"),
    enableIncrementalDelivery: false,
  });
  return async (params, options) => {
    const answer = await execute(params, options);
    const job = "data" in answer ? (answer.data as { fetchPrices?: { id?: string } } | null)?.fetchPrices : null;
    if (job?.id) onJob(job.id);
    return answer;
  };
}

/** Puts the id of the fetch that was just asked for into the variables of the tab that follows it. */
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
      // Half-typed variables are the user's.
    }
  }, [id, editor]);
  return null;
}
