/** The dashboard. Every number on it comes from the public GraphQL API; this wires the panels to what they show. */

import "./base.css";
import "./page.css";
import "./cards.css";
import "./chart.css";
import "./completeness.css";
import "./fetching.css";
import { Access } from "./access";
import { ApiError, onAnswer } from "./api";
import { Cards, title } from "./cards";
import { Chart, type Scene } from "./chart";
import { choiceOfAddress, keepInAddress, labelOf } from "./choice";
import { Completeness } from "./completeness";
import { Controls } from "./controls";
import { Cursor } from "./cursor";
import { grouped } from "./decimal";
import { CANDLES, COVERAGE, inGraphiQL, MAX_LIMIT, PRICE_UPDATES, PRICES, TICKERS } from "./documents";
import { byId, setText } from "./elements";
import { Fetching } from "./fetching";
import { History } from "./history";
import { Live } from "./live";
import { variablesOf } from "./rows";
import { Status } from "./status";
import { backfilledStretches, holesOf, itemsOf } from "./stretches";
import { Table } from "./table";
import { isStale, Tickers } from "./tickers";
import { MINUTE, parse, SECOND, zone } from "./time";

/** Live, only the comparisons and the server's clock grow old. */
const POLL_WHEN_LIVE = MINUTE / 2;
const POLL_WHEN_STALE = 10 * SECOND;
const POLL_WHEN_NOT = 5 * SECOND;

/** Seconds from slot to slot, until the API says it. */
const USUAL_GRID = 60;

const choice = choiceOfAddress();
const tickers = new Tickers();
const live = new Live({
  since: () => tickers.seenUntil,
  onPrice: (price) => {
    status.hear();
    tickers.note(price);
    history.insert(price);
    drawSoon();
  },
  onLocked: (error) => {
    status.note(error);
    drawSoon();
  },
  // What is stored from now on is sent; what was healed meanwhile lies before it, and has to be read.
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
new Access(() => {
  live.retryNow();
  void refresh();
});

let refreshing: Promise<void> | null = null;
let refreshedAt = 0;
let isBehind = false;
let stale = 0;
let isDrawing = false;

/** Read what is new. One at a time. */
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
  const known = tickers.known.get(choice.ticker) ?? tickers.all[0];
  if (!known) return;
  choice.ticker = known.name;
  keepInAddress(choice);
  controls.show(known.interval / SECOND);
  cursor.clear();
  drawSoon();
  await history.load({ ...choice }, known.interval);
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
    backfilled: backfilledStretches(sourced ?? [], known.interval),
    begin: sourced?.[0] ? parse(sourced[0].timestamp) : (items[0]?.from ?? period.from),
    isSourced: sourced !== null,
    requested: history.prices.filter(({ source }) => source === "REQUESTED"),
  };
  chart.show(scene);
  cursor.update();
  table.show(items, holes);
  completeness.show(history);
  setText(byId("chart-heading"), title(known.name));
  setText(byId("chart-interval"), intervalWords());
  setText(byId("chart-message"), messageFor(items.length));
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

function messageFor(count: number): string {
  if (history.error) {
    const what = count > 0 ? "The chart is not up to date" : "The chart could not be read";
    return `${what}: ${history.error.message} (${history.error.code})`;
  }
  if (history.isLoading && count === 0) return "Reading …";
  return count === 0 ? "Nothing is stored in this period." : "";
}

/** The GraphQL behind each panel, one click away. */
function link(): void {
  const variables = variablesOf(history.period);
  const rows =
    history.interval === "PRICES"
      ? inGraphiQL(PRICES, { ...variables, limit: MAX_LIMIT })
      : inGraphiQL(CANDLES, { ...variables, interval: history.interval, limit: MAX_LIMIT });
  const links = {
    "prices-query": inGraphiQL(TICKERS),
    "live-query": inGraphiQL(PRICE_UPDATES, { tickers: null, since: tickers.seenUntil }),
    "chart-query": rows,
    "completeness-query": inGraphiQL(COVERAGE, variables),
  };
  for (const [id, href] of Object.entries(links)) byId<HTMLAnchorElement>(id).href = href;
}

function tick(): void {
  const before = stale;
  stale = tickers.all.filter(isStale).length;
  // One that has just become stale is asked about at once: why it is, or whether the API is still there.
  if (stale > before) refreshedAt = 0;
  const every = status.state !== "live" ? POLL_WHEN_NOT : stale > 0 ? POLL_WHEN_STALE : POLL_WHEN_LIVE;
  if (Date.now() - refreshedAt > every) void refresh();
  if (history.isChosen(choice.ticker)) void history.slide();
  drawSoon();
}

onAnswer((error) => {
  const wasOffline = status.state === "offline";
  status.note(error);
  // An API that answers again takes sockets again.
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
controls.show(USUAL_GRID);
setInterval(tick, SECOND);
drawSoon();
await refresh();
void live.run();
