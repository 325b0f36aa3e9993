import "./workers";
import "@graphiql/react/style.css";
import "@graphiql/plugin-doc-explorer/style.css";
import "@graphiql/plugin-history/style.css";
import "graphiql/graphiql.css";
import "./page.css";

import type { GraphiQLProps } from "graphiql";
import { createRoot } from "react-dom/client";
import { Page } from "./Page";
import { exampleTabs, type Tab } from "./tabs";

type Tabs = Pick<GraphiQLProps, "defaultTabs" | "initialQuery" | "initialVariables">;

const TABS_KEY = "graphiql:tabState"; // where GraphiQL stores the user's tabs

async function tabs(url: string): Promise<Tabs> {
  const wanted = wantedByAddress();
  const isFirstVisit = localStorage.getItem(TABS_KEY) === null;
  const defaultTabs = isFirstVisit ? [...(wanted ? [wanted] : []), ...(await exampleTabs(url))] : [];
  const first = wanted ?? defaultTabs[0];
  // On later visits only the query of the address opens in a new tab.
  return {
    ...(isFirstVisit && { defaultTabs }),
    ...(first && { initialQuery: first.query ?? "", initialVariables: first.variables ?? "" }),
  };
}

/** The query of an address such as `/graphql?query=…&variables=…`. The address is reset to `/graphql`. */
function wantedByAddress(): Tab | null {
  const address = new URL(location.href);
  const query = address.searchParams.get("query");
  if (!query) return null;
  history.replaceState(null, "", address.pathname);
  return { query, variables: readable(address.searchParams.get("variables") ?? ""), headers: null };
}

function readable(variables: string): string {
  try {
    return JSON.stringify(JSON.parse(variables), null, 2);
  } catch {
    return variables;
  }
}

const url = new URL("graphql", location.href).href;
const root = createRoot(document.getElementById("graphiql")!);
root.render(<Page url={url} {...await tabs(url)} />);
