/**
 * The dashboard: wires the panels to their data. Every number comes from the public GraphQL API.
 *
 * Folders depend downwards only: `panels/` (cards, notices, completeness), `chart/` (what the chart shows, and how it is
 * drawn), `data/` (the API), `text/` (numbers, times and elements).
 */

import "./base.css";
import "./page.css";
import "./panels/cards.css";
import "./chart/chart.css";
import "./panels/completeness.css";
import "./panels/fetching.css";
import { Chart } from "./chart/chart";
import { choiceOfAddress, keepInAddress, labelOf, RANGES, resolve } from "./chart/choice";
import { Controls } from "./chart/controls";
import { Cursor } from "./chart/cursor";
import { History } from "./chart/history";
import { exportOf, variablesOf } from "./chart/rows";
import type { Scene } from "./chart/scene";
import { holesOf, itemsOf, stretchesOf } from "./chart/stretches";
import { Table } from "./chart/table";
import { ApiError, onAnswer } from "./data/api";
import { CANDLES, COVERAGE, inGraphiQL, MAX_LIMIT, PRICE_UPDATES, PRICES, TICKERS } from "./data/documents";
import { Live } from "./data/live";
import { isStale, type Known, Tickers } from "./data/tickers";
import { Access } from "./panels/access";
import { Cards, title } from "./panels/cards";
import { Completeness } from "./panels/completeness";
import { Download } from "./panels/download";
import { Fetching } from "./panels/fetching";
import { Status } from "./panels/status";
import { grouped } from "./text/decimal";
import { byId, setText } from "./text/elements";
import { duration, MINUTE, parse, SECOND, zone } from "./text/time";

/** While live, only the comparisons and the server's clock need polling. */
const POLL_WHEN_LIVE = MINUTE / 2;
const POLL_WHEN_STALE = 10 * SECOND;
const POLL_WHEN_OFFLINE = 5 * SECOND;

/** Seconds from slot to slot, until the API answers. */
const DEFAULT_GRID = 60;

const choice = choiceOfAddress();
const tickers = new Tickers();
const live = new Live({
  since: () => tickers.seenUntil,
  onPrice: (price) => {
    status.hear();
    // While the history is being filled, thousands of prices a second arrive that nothing on the page shows.
    if (tickers.note(price)) drawSoon();
    history.insert(price);
  },
  onLocked: (error) => {
    status.note(error);
    drawSoon();
  },
  // The socket sends what is stored from now on. Slots healed during an outage are older, so read them.
  onChange: (connection) => {
    if (connection === "live" && isBehind) void reload();
    isBehind = connection !== "live";
    drawSoon();
  },
});
const history = new History(drawSoon);
const status = new Status(live, () => {
  live.retryNow();
  void refresh();
});
const cards = new Cards(byId("cards"), (ticker) => {
  choice.ticker = ticker;
  show();
});
const controls = new Controls(choice, show);
const chart = new Chart(byId("plot"));
const cursor = new Cursor(chart, byId("chart"));
const completeness = new Completeness(byId("completeness-panel"));
const table = new Table();
new Fetching(live);
new Download();
new Access(() => {
  live.retryNow();
  void refresh();
});

let refreshing: Promise<void> | null = null;
let refreshedAt = 0;
let isBehind = false;
let stale = 0;
let isDrawing = false;

/** Read what is new (single flight). */
function refresh(): Promise<void> {
  refreshing ??= read().finally(() => {
    refreshing = null;
    refreshedAt = Date.now();
    drawSoon();
  });
  return refreshing;
}

async function read(): Promise<void> {
  try {
    await tickers.refresh();
    drawSoon();
    await Promise.all([readChart(), tickers.compare(), tickers.explain()]);
    if (tickers.known.get(choice.ticker)?.gap) history.countSoon();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    isBehind = true;
  }
}

async function readChart(): Promise<void> {
  if (!history.isChosen(choice.ticker)) await show();
  else if (live.connection !== "live" || history.error) await history.catchUp();
}

async function reload(): Promise<void> {
  await refresh();
  if (history.isChosen(choice.ticker)) await history.reload();
}

/** Another ticker, range, interval or form. */
async function show(): Promise<void> {
  const known = tickers.known.get(choice.ticker) ?? tickers.all.find(({ latest }) => latest) ?? tickers.all[0];
  if (!known) return;
  choice.ticker = known.name;
  keepInAddress(choice);
  controls.show(known.interval / SECOND);
  cursor.clear();
  drawSoon();
  await history.load(resolve(choice, known.interval / SECOND), known.interval);
}

function drawSoon(): void {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    draw();
  });
}

function draw(): void {
  cards.show(tickers.all, choice.ticker);
  status.show(tickers.all);
  byId("loading").hidden = tickers.known.size > 0 || ["offline", "locked"].includes(status.state);
  byId("chart-section").hidden = byId("completeness").hidden = tickers.known.size === 0;
  const known = tickers.known.get(choice.ticker);
  if (!known || !history.isChosen(choice.ticker)) return;
  const items = itemsOf(history);
  const { period, sourced } = history;
  const holes = holesOf(history.coverage?.gaps ?? []);
  const scene: Scene = {
    form: choice.form,
    period,
    items,
    holes,
    recovered: stretchesOf("RECOVERED", sourced ?? [], known.interval),
    backfilled: stretchesOf("BACKFILLED", sourced ?? [], known.interval),
    begin: sourced?.[0] ? parse(sourced[0].timestamp) : (items[0]?.from ?? period.from),
    isSourced: sourced !== null,
    requested: history.prices.filter(({ source }) => source === "REQUESTED"),
  };
  chart.show(scene);
  cursor.update();
  table.show(items, holes);
  completeness.show(history, known.fillingTo);
  setText(byId("chart-heading"), title(known.name));
  setText(byId("chart-interval"), intervalWords());
  setText(byId("chart-message"), messageFor(known, items.length));
  byId("chart-message").hidden = items.length > 0 && !history.error;
  byId("chart-section").dataset.form = choice.form;
  byId("chart-section").dataset.interval = history.interval;
  byId("chart-section").dataset.sources = scene.isSourced ? "known" : "unknown";
  byId("chart-section").setAttribute("aria-busy", String(history.isLoading));
  document.title = known.latest ? `${grouped(known.latest.price)} ${title(known.name)} · Deribit prices` : "Deribit prices";
  link();
}

function intervalWords(): string {
  const label = labelOf(history.interval);
  return history.interval === "PRICES" ? "each price as it is stored" : `one ${choice.form === "line" ? "close" : "candle"} per ${label}`;
}

function messageFor(known: Known, count: number): string {
  if (history.error) {
    const what = count > 0 ? "The chart is not up to date" : "The chart could not be read";
    return `${what}: ${history.error.message} (${history.error.code})`;
  }
  if (count > 0) return "";
  if (history.isLoading) return "Loading …";
  if (known.near) return `${known.name} does not exist at the exchange, so it has no prices.`;
  const isTooShort = known.interval >= RANGES[resolve(choice, known.interval / SECOND).range].seconds * SECOND;
  const rest = isTooShort ? ` One price is stored every ${duration(known.interval)}, so choose a longer range.` : "";
  return `Nothing is stored in this period.${rest}`;
}

/** Link each panel to its GraphQL. */
function link(): void {
  const variables = variablesOf(history.period);
  const rows =
    history.interval === "PRICES"
      ? inGraphiQL(PRICES, { ...variables, limit: MAX_LIMIT })
      : inGraphiQL(CANDLES, { ...variables, interval: history.interval, limit: MAX_LIMIT });
  const links = {
    "prices-query": inGraphiQL(TICKERS),
    "live-query": inGraphiQL(PRICE_UPDATES, { tickers: null, since: tickers.seenUntil, after: null }),
    "chart-query": rows,
    "chart-download": exportOf(history.period, history.interval),
    "completeness-query": inGraphiQL(COVERAGE, variables),
  };
  for (const [id, href] of Object.entries(links)) byId<HTMLAnchorElement>(id).href = href;
}

function tick(): void {
  const before = stale;
  stale = tickers.all.filter(isStale).length;
  // When a ticker becomes stale, find out at once why, or whether the API is still there.
  if (stale > before) refreshedAt = 0;
  const every = status.state !== "live" ? POLL_WHEN_OFFLINE : stale > 0 ? POLL_WHEN_STALE : POLL_WHEN_LIVE;
  if (Date.now() - refreshedAt > every) void refresh();
  if (history.isChosen(choice.ticker)) void history.slide();
  drawSoon();
}

onAnswer((error) => {
  const wasOffline = status.state === "offline";
  status.note(error);
  // An API that answers again accepts sockets again.
  if (!error && wasOffline) live.retryNow();
  drawSoon();
});
addEventListener("online", () => live.retryNow());
addEventListener("offline", () => void refresh());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  live.retryNow();
  void refresh();
});
setText(byId("zone"), zone());
byId("zone-hint").hidden = zone() === "UTC";
controls.show(DEFAULT_GRID);
setInterval(tick, SECOND);
drawSoon();
await refresh();
void live.run();
