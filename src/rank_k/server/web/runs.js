// Runs: the queries, rankings and calls in a journal. The URL says what is shown: #run=…&query=…&round=…&window=…
// In the URL and on the page, queries, rounds and windows count from 1. In the journal they count from 0.

import { getJson } from "/page/api.js";
import { drawBumpChart } from "/page/bump.js";
import { byId, h, hueClass, pluralize, formatSeconds, show, formatInteger } from "/page/dom.js";
import { makeSingleTabStop } from "/page/keys.js";
import { renderWindow } from "/page/window.js";

const MAX_ROWS = 25; // rows of a chart, until the reader shows all
const NUMBERS = ["query", "round", "window"]; // the parameters of the URL that count from 1
let runs = [];
let latestRequest = 0; // responses to earlier requests that arrive later are ignored
let currentQuery = null;

/** The parameters of the URL, with numbers that count from 0. */
const readLocation = () => Object.fromEntries([...new URLSearchParams(location.hash.slice(1))]
  .map(([name, value]) => [name, NUMBERS.includes(name) ? Number(value) - 1 : value]));

/** The URL fragment for `params`, whose numbers count from 0. */
const makeHash = params => `#${new URLSearchParams(Object.entries(params)
  .filter(([, value]) => value !== undefined && value !== "")
  .map(([name, value]) => [name, NUMBERS.includes(name) ? value + 1 : value]))}`;
const formatTime = time => time === null ? "" : new Date(1000 * time).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
const handleError = error => { if (error.name !== "AbortError") showError(error); };

async function showLocation() {
  const params = readLocation();
  const requestNumber = (latestRequest += 1);
  try {
    await (params.query === undefined ? showList(params, requestNumber) : showQuery(params, requestNumber));
  } catch (error) {
    handleError(error);
  }
}

function showError(error) {
  byId("list").hidden = false;
  byId("found").hidden = byId("one").hidden = true;
  show(byId("silent"), error.message);
  byId("silent").hidden = false;
  if (!("status" in error)) throw error;
}

// --- the list ---

async function showList(params, requestNumber) {
  const journal = await readRuns();
  if (requestNumber !== latestRequest) return;
  const run = params.run === undefined ? runs[0] : runs.find(({ run }) => run === params.run);
  byId("one").hidden = true;
  byId("list").hidden = false;
  byId("silent").hidden = Boolean(run);
  byId("found").hidden = !run;
  document.title = "Runs · Rank-K";
  show(byId("journal"), journal);
  if (!run) {
    if (journal === null) show(byId("silent"), "This server stores calls only in a temporary file. Start it with --journal FILE to see the calls here.");
    else if (!runs.length) show(byId("silent"), "There are no queries yet. Queries that you send in Try, or with any other client of this server, appear here.");
    else show(byId("silent"), ["This journal has no such run. ", h("a", { href: "/runs" }, "Show the latest run")]);
    return;
  }
  show(byId("run"), runs.map(listedRun => h("option", { value: listedRun.run, selected: listedRun === run }, `${runTitle(listedRun)} · ${formatTime(listedRun.started_at)} · ${pluralize(listedRun.queries, "query", "queries")}`)));
  byId("find").value = params.find ?? "";
  showSettings(run.settings);
  const offset = Number(params.offset ?? 0);
  const page = await getJson(`/journal/queries?${new URLSearchParams({ run: run.run, find: params.find ?? "", offset, newest_first: true })}`);
  if (requestNumber !== latestRequest) return;
  show(byId("queries"), groupRepeated(page.queries).map(([latest, ...earlier]) => renderRow(latest, earlier)));
  byId("none").hidden = page.queries.length > 0;
  const last = offset + page.queries.length;
  byId("pager").hidden = page.total <= page.queries.length;
  show(byId("place"), `${formatInteger(offset + 1)}–${formatInteger(last)} of ${formatInteger(page.total)}`);
  byId("back").disabled = offset === 0;
  byId("on").disabled = last >= page.total;
  const size = Math.max(page.queries.length, 50);
  byId("back").onclick = () => { location.hash = makeHash({ ...params, run: run.run, offset: Math.max(offset - size, 0) }); };
  byId("on").onclick = () => { location.hash = makeHash({ ...params, run: run.run, offset: last }); };
}

/** Reload the list of runs, but reuse the older runs that are already loaded. Returns the journal's name. */
async function readRuns() {
  const first = await getJson("/journal/runs");
  const others = runs.filter(({ run }) => first.runs.every(listedRun => listedRun.run !== run));
  const readSoFar = first.runs;
  if (readSoFar.length + others.length === first.total) readSoFar.push(...others);
  while (readSoFar.length < first.total) {
    const { runs: more } = await getJson(`/journal/runs?offset=${readSoFar.length}`);
    if (!more.length) break;
    readSoFar.push(...more);
  }
  runs = readSoFar;
  return first.journal;
}

/** The title of a run: the name of the file that it wrote or read. Queries that were sent one by one have no file. */
function runTitle({ settings, run }) {
  if (settings.made) return "Single queries";
  const file = [settings.output, settings.run, settings.cell].find(value => typeof value === "string");
  return file ? file.split("/").at(-1) : run;
}

/** Groups of queries with the same text and the same number of passages, in the order of their first queries. */
function groupRepeated(queries) {
  const groups = new Map();
  for (const query of queries) {
    const key = query.text?.trim() ? `${query.passages} ${query.text}` : query.position;
    groups.set(key, [...(groups.get(key) ?? []), query]);
  }
  return [...groups.values()];
}

function showSettings(settings) {
  const shownSettings = Object.entries(settings).filter(([name, value]) => value !== null && value !== "" && value !== false && name !== "name");
  show(byId("settings"), shownSettings.map(([name, value]) =>
    [h("dt", {}, name.replaceAll("_", " ")), h("dd", { dir: "auto" }, typeof value === "object" ? JSON.stringify(value) : String(value))]));
}

/** A row for a query. `earlier`: older requests with the same query. */
function renderRow(query, earlier) {
  const address = ({ run, position }) => makeHash({ run, query: position });
  const repairs = Object.entries(query.repairs).map(([kind, count]) => `${kind.replaceAll("_", " ")} ${count}`).join(", ");
  return h("tr", {},
    h("th", { scope: "row" },
      h("a", { href: address(query), dir: "auto" }, query.text?.trim() || query.query_id || "(no text)"),
      h("span", { class: "soft small" }, [query.query_id, formatTime(query.opened_at), query.finished ? null : "no ranking yet"].filter(Boolean).join(" · ")),
      earlier.length > 0 && h("details", { class: "small" }, h("summary", {}, `${pluralize(earlier.length, "earlier request")} with this query`),
        earlier.map(other => h("a", { href: address(other) }, `${formatTime(other.opened_at)} · ${other.query_id}`)))),
    h("td", { class: "n wide" }, formatInteger(query.passages)), h("td", { class: "n" }, formatInteger(query.rounds)), h("td", { class: "n" }, formatInteger(query.windows)),
    h("td", { class: "small wide" }, repairs || "–"));
}

// --- one query ---

async function showQuery(params, requestNumber) {
  const key = `${params.run} ${params.query}`;
  if (byId("one").hidden || currentQuery.key !== key) {
    const query = await getJson(`/journal/query?${new URLSearchParams({ run: params.run ?? "", position: params.query })}`);
    if (requestNumber !== latestRequest) return;
    currentQuery = { key, query, hues: assignHues(query) };
    byId("list").hidden = true;
    byId("one").hidden = false;
    renderQuery(query, params);
    if (params.round === undefined) byId("text").focus({ preventScroll: true });
  }
  await showWindow(params, requestNumber);
}

/** The color class of each passage by document id, in the order of the ranking. */
function assignHues({ passages, ranking, rounds }) {
  const order = (ranking ?? rounds.at(-1) ?? []).flat();
  return new Map(order.map((place, rank) => [passages[place].doc_id, hueClass(rank + 1)]));
}

const hueOfDocument = id => currentQuery.hues.get(id) ?? "";

/** The name of a passage: its document id. For single queries, the id is an index from 0, which is shown from 1. */
function nameOfDocument(id) {
  const isPosition = currentQuery.query.passages.every(({ doc_id: other }, place) => other === String(place));
  return isPosition ? `passage ${Number(id) + 1}` : id;
}

function renderQuery(query, params) {
  const { windows, rounds, ranking, passages } = query;
  document.title = `${query.text ?? query.query_id} · Rank-K`;
  show(byId("text"), query.text?.trim() || query.query_id);
  byId("up").href = makeHash({ run: query.run });
  const tokens = windows.reduce((sum, window) => sum + window.prompt_tokens + window.completion_tokens, 0);
  const totalSeconds = windows.reduce((sum, window) => sum + window.seconds, 0);
  show(byId("facts"), [query.query_id, pluralize(passages.length, "passage"), pluralize(new Set(windows.map(w => w.round)).size, "round"),
    pluralize(windows.length, "window"), pluralize(tokens, "token"), `${formatSeconds(totalSeconds)} of model time`, formatTime(query.opened_at)].filter(Boolean).join(" · "));
  const state = !query.finished ? "There is no ranking yet. The query is still running (reload the page to see more) or was interrupted."
    : rounds.length || passages.length < 2 ? "" : "This journal is from an older version of Rank-K, which did not store the ranking after each round.";
  byId("state").hidden = !state;
  show(byId("state"), state);
  renderWindows(query, renderChart(query, MAX_ROWS), params);
}

function renderChart(query, maxRows) {
  const { passages, rounds, ranking, windows } = query;
  const comparedIn = round => new Set(windows.filter(window => window.round === round).flatMap(window => window.shown));
  const columns = rounds.map((tiers, round) => ({ label: round ? String(round) : "input", tiers, compared: comparedIn(round) }));
  if (ranking) columns.push({ label: "final", tiers: ranking, compared: new Set() });
  byId("all").hidden = passages.length <= MAX_ROWS;
  show(byId("all"), maxRows === MAX_ROWS ? `Show all ${formatInteger(passages.length)}` : `Show the best ${MAX_ROWS}`);
  byId("all").onclick = () => renderChart(query, maxRows === MAX_ROWS ? passages.length : MAX_ROWS);
  if (!columns.length) {
    show(byId("chart"));
    show(byId("ranking"));
    return null;
  }
  const chart = drawBumpChart(byId("chart"), byId("ranking"), {
    columns, maxRows,
    passages: passages.map(({ doc_id: id, text }) => ({ name: nameOfDocument(id), text, hue: hueOfDocument(id) })),
    onFollow: (place, ranks) => {
      byId("followed").hidden = place === null;
      if (place === null) return;
      const { doc_id: id, text } = passages[place];
      const rankChanges = ranks.filter((rank, index) => rank !== ranks[index - 1]).join(" → ");
      show(byId("followed"), h("span", { class: `dot ${hueOfDocument(id)}`, "aria-hidden": "true" }), h("b", {}, nameOfDocument(id)), " ",
        h("span", { class: "n" }, `rank ${rankChanges}`), h("span", { class: "soft", dir: "auto" }, text ?? ""));
    },
  });
  makeSingleTabStop(byId("ranking"), "button.passage");
  return chart;
}

function renderWindows({ windows, run, position }, chart, params) {
  const byRound = Map.groupBy ? Map.groupBy(windows, window => window.round) : groupByRound(windows);
  show(byId("windows"), [...byRound].map(([round, all]) => h("div", { class: "round" }, h("span", { class: "soft small n" }, `Round ${round + 1}`),
    h("div", { class: "row" }, all.map(window => {
      const isUnranked = !window.orders.some(order => order.ranked);
      const repairCount = Object.values(window.repairs).reduce((sum, count) => sum + count, 0);
      const summary = `${pluralize(window.shown.length, "passage")}, ${pluralize(window.completion_tokens, "token")}`;
      const mark = set => chart?.mark(set);
      return h("a", {
        class: `button chip${isUnranked ? " bad" : ""}`, href: makeHash({ run, query: position, round, window: window.window }),
        onfocus: () => mark(new Set(window.shown)), onblur: () => mark(null), onpointerenter: () => mark(new Set(window.shown)), onpointerleave: () => mark(null),
        "data-window": `${round}.${window.window}`,
      }, h("b", {}, String(window.window + 1)), h("span", { class: "soft small n" }, summary), isUnranked ? h("span", { class: "small error" }, "not ranked") : repairCount > 0 && h("span", { class: "small soft" }, pluralize(repairCount, "repair")));
    })))));
}

async function showWindow(params, requestNumber) {
  byId("window").hidden = true;
  for (const chip of byId("windows").querySelectorAll(".chip")) {
    if (chip.dataset.window === `${params.round}.${params.window}`) chip.setAttribute("aria-current", "true");
    else chip.removeAttribute("aria-current");
  }
  if (params.round === undefined) return;
  const parameters = new URLSearchParams({ run: params.run, position: params.query, round: params.round, window: params.window });
  const record = await getJson(`/journal/window?${parameters}`);
  if (requestNumber !== latestRequest) return;
  renderWindow(record, hueOfDocument, nameOfDocument);
  byId("window").hidden = false;
  byId("window").scrollIntoView();
  byId("window-title").focus({ preventScroll: true });
}

function groupByRound(windows) {
  const groups = new Map();
  for (const window of windows) groups.set(window.round, [...(groups.get(window.round) ?? []), window]);
  return groups;
}

byId("run").addEventListener("change", () => { location.hash = makeHash({ run: byId("run").value }); });
byId("pick").addEventListener("submit", event => {
  event.preventDefault();
  location.hash = makeHash({ run: byId("run").value, find: byId("find").value.trim() });
});
byId("find").addEventListener("search", () => { if (!byId("find").value && readLocation().find) location.hash = makeHash({ run: byId("run").value }); });
byId("again").addEventListener("click", () => { runs = []; showLocation(); });
addEventListener("hashchange", showLocation);
let width = innerWidth;
addEventListener("resize", () => {
  if (currentQuery && !byId("one").hidden && Math.abs(innerWidth - width) > 40) {
    width = innerWidth;
    renderChart(currentQuery.query, MAX_ROWS);
  }
});
showLocation();
