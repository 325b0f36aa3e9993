/** Reads from `/readyz` which tickers do not exist at the exchange. */

const TIMEOUT = 5000;

export interface UnknownIndex {
  name: string;
  /** Similar names that the exchange knows. */
  near: string[];
}

interface Dependency {
  reason?: string | null;
  unknownIndices?: UnknownIndex[];
}

/** The unknown ones of these tickers. Without an answer the list is empty, because `/readyz` only explains what is shown. */
export async function readUnknownIndices(tickers: string[]): Promise<UnknownIndex[]> {
  try {
    const response = await fetch("readyz", { signal: AbortSignal.timeout(TIMEOUT) });
    const { dependencies } = (await response.json()) as { dependencies: Record<string, Dependency> };
    const all = Object.values(dependencies);
    const listed = all.flatMap(({ unknownIndices }) => unknownIndices ?? []);
    const reasons = all.flatMap(({ reason }) => reason ?? []);
    return tickers.flatMap(
      (ticker) => listed.find(({ name }) => name === ticker) ?? reasons.flatMap((reason) => unknownIn(reason, ticker))[0] ?? [],
    );
  } catch {
    return [];
  }
}

/**
 * Finds "btc_usdd does not exist at the exchange; near ones: btc_usd, eth_usd" in a reason. A clause names the ticker as
 * a whole word before its verb, so the near names of another ticker do not match.
 */
function unknownIn(reason: string, ticker: string): UnknownIndex[] {
  const clauses = reason.toLowerCase().split(/[;()\n]|\.\s|\.$/);
  const at = clauses.findIndex((clause) => {
    const [subject, rest] = clause.split(/\b(?:do|does) not exist\b/);
    return rest !== undefined && namesIn(subject!).includes(ticker);
  });
  if (at < 0) return [];
  const near = /\bnear\b[^:]*:(.*)/.exec(clauses[at + 1] ?? "");
  return [{ name: ticker, near: near ? namesIn(near[1]!) : [] }];
}

/** Words with an underscore, as every index name has one. */
function namesIn(text: string): string[] {
  return text.match(/\w+_\w+/g) ?? [];
}
