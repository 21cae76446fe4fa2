// Runs: what a journal holds. The address says what is looked at: #run=…&query=…&round=…&window=…

import { got } from "/page/api.js";
import { drawn } from "/page/bump.js";
import { at, h, hue, many, seconds, show, whole } from "/page/dom.js";
import { oneTabStop } from "/page/keys.js";
import { windowShown } from "/page/window.js";

const MOST = 25; // rows of a chart, unless all are asked for
let runs = [];
let looked = 0; // what is asked for last is what is shown, however late the rest comes
let shownQuery = null;

const here = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
const hash = told => `#${new URLSearchParams(Object.entries(told).filter(([, value]) => value !== undefined && value !== ""))}`;
const when = time => time === null ? "" : new Date(1000 * time).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
const rethrown = error => { if (error.name !== "AbortError") failed(error); };

async function look() {
  const told = here();
  const turn = (looked += 1);
  try {
    await (told.query === undefined ? listed(told, turn) : queried(told, turn));
  } catch (error) {
    rethrown(error);
  }
}

function failed(error) {
  at("list").hidden = false;
  at("found").hidden = at("one").hidden = true;
  show(at("silent"), error.message);
  at("silent").hidden = false;
  if (!("status" in error)) throw error;
}

// --- the list ---

async function listed(told, turn) {
  const journal = await runsRead();
  if (turn !== looked) return;
  const run = told.run === undefined ? runs[0] : runs.find(({ run }) => run === told.run);
  at("one").hidden = true;
  at("list").hidden = false;
  at("silent").hidden = Boolean(run);
  at("found").hidden = !run;
  document.title = "Runs · Rank-K";
  show(at("journal"), journal);
  if (!run) {
    if (journal === null) show(at("silent"), "This server keeps its calls where they cannot be looked at. Give it a --journal FILE.");
    else if (!runs.length) show(at("silent"), "Nothing has been asked yet. What is asked in Try, or by any client of this server, is found here.");
    else show(at("silent"), ["This journal has no such run. ", h("a", { href: "/runs" }, "Look at the latest one")]);
    return;
  }
  show(at("run"), runs.map(each => h("option", { value: each.run, selected: each === run }, `${titleOf(each)} · ${when(each.started_at)} · ${many(each.queries, "query", "queries")}`)));
  at("find").value = told.find ?? "";
  settingsShown(run.settings);
  const offset = Number(told.offset ?? 0);
  const page = await got(`/journal/queries?${new URLSearchParams({ run: run.run, find: told.find ?? "", offset })}`);
  if (turn !== looked) return;
  show(at("queries"), page.queries.map(query => rowOf(query)));
  at("none").hidden = page.queries.length > 0;
  const last = offset + page.queries.length;
  at("pager").hidden = page.total <= page.queries.length;
  show(at("place"), `${whole(offset + 1)}–${whole(last)} of ${whole(page.total)}`);
  at("back").disabled = offset === 0;
  at("on").disabled = last >= page.total;
  const size = Math.max(page.queries.length, 50);
  at("back").onclick = () => { location.hash = hash({ ...told, run: run.run, offset: Math.max(offset - size, 0) }); };
  at("on").onclick = () => { location.hash = hash({ ...told, run: run.run, offset: last }); };
}

/** Read all runs anew, older ones only where some are not known yet. Returns the journal's name. */
async function runsRead() {
  const first = await got("/journal/runs");
  const others = runs.filter(({ run }) => first.runs.every(each => each.run !== run));
  const found = first.runs;
  if (found.length + others.length === first.total) found.push(...others);
  while (found.length < first.total) {
    const { runs: more } = await got(`/journal/runs?offset=${found.length}`);
    if (!more.length) break;
    found.push(...more);
  }
  runs = found;
  return first.journal;
}

/** What a run is called: what it read or wrote, or that it is of single queries. */
function titleOf({ settings, run }) {
  const file = [settings.output, settings.run, settings.cell].find(value => typeof value === "string");
  return settings.made ?? (file ? file.split("/").at(-1) : run);
}

function settingsShown(settings) {
  const told = Object.entries(settings).filter(([name, value]) => value !== null && value !== "" && value !== false && name !== "name");
  show(at("settings"), told.map(([name, value]) =>
    [h("dt", {}, name.replaceAll("_", " ")), h("dd", { dir: "auto" }, typeof value === "object" ? JSON.stringify(value) : String(value))]));
}

function rowOf(query) {
  const mended = Object.entries(query.repairs).map(([kind, count]) => `${kind.replaceAll("_", " ")} ${count}`).join(", ");
  return h("tr", {},
    h("th", { scope: "row" },
      h("a", { href: hash({ run: query.run, query: query.position }), dir: "auto" }, query.text?.trim() || query.query_id || "(no text)"),
      h("span", { class: "soft small" }, [query.query_id, when(query.opened_at), query.finished ? null : "no ranking yet"].filter(Boolean).join(" · "))),
    h("td", { class: "n wide" }, whole(query.passages)), h("td", { class: "n" }, whole(query.rounds)), h("td", { class: "n" }, whole(query.windows)),
    h("td", { class: "small wide" }, mended || "–"));
}

// --- one query ---

async function queried(told, turn) {
  const key = `${told.run} ${told.query}`;
  if (at("one").hidden || shownQuery.key !== key) {
    const query = await got(`/journal/query?${new URLSearchParams({ run: told.run ?? "", position: told.query })}`);
    if (turn !== looked) return;
    shownQuery = { key, query, hues: huesOf(query) };
    at("list").hidden = true;
    at("one").hidden = false;
    queryShown(query, told);
    if (told.round === undefined) at("text").focus({ preventScroll: true });
  }
  await windowAt(told, turn);
}

/** By doc id: the best twelve have colors of their own. */
function huesOf({ passages, ranking, rounds }) {
  const order = (ranking ?? rounds.at(-1) ?? []).flat();
  return new Map(order.map((place, rank) => [passages[place].doc_id, hue(rank + 1)]));
}

const hueOf = id => shownQuery.hues.get(id) ?? "";

function queryShown(query, told) {
  const { windows, rounds, ranking, passages } = query;
  document.title = `${query.text ?? query.query_id} · Rank-K`;
  show(at("text"), query.text?.trim() || query.query_id);
  at("up").href = hash({ run: query.run });
  const tokens = windows.reduce((sum, window) => sum + window.prompt_tokens + window.completion_tokens, 0);
  const took = windows.reduce((sum, window) => sum + window.seconds, 0);
  show(at("facts"), [query.query_id, many(passages.length, "passage"), many(new Set(windows.map(w => w.round)).size, "round"),
    many(windows.length, "window"), many(tokens, "token"), `${seconds(took)} of the model's time`, when(query.opened_at)].filter(Boolean).join(" · "));
  const state = !query.finished ? "No ranking yet: it is under way (reload the page to see more), or was ended before it had one."
    : rounds.length || passages.length < 2 ? "" : "This journal was begun by an older version, which did not keep how rankings stood between rounds.";
  at("state").hidden = !state;
  show(at("state"), state);
  windowsShown(query, chartShown(query, MOST), told);
}

function chartShown(query, most) {
  const { passages, rounds, ranking, windows } = query;
  const asked = round => new Set(windows.filter(window => window.round === round).flatMap(window => window.shown));
  const columns = rounds.map((tiers, round) => ({ label: round ? String(round) : "first", tiers, asked: asked(round) }));
  if (ranking) columns.push({ label: "end", tiers: ranking, asked: new Set() });
  at("all").hidden = passages.length <= MOST;
  show(at("all"), most === MOST ? `Show all ${whole(passages.length)}` : `Show the best ${MOST}`);
  at("all").onclick = () => chartShown(query, most === MOST ? passages.length : MOST);
  if (!columns.length) {
    show(at("chart"));
    show(at("ranking"));
    return null;
  }
  const chart = drawn(at("chart"), at("ranking"), {
    columns, most,
    passages: passages.map(({ doc_id: name, text }) => ({ name, text, hue: hueOf(name) })),
    follow: (place, ranks) => {
      at("followed").hidden = place === null;
      if (place === null) return;
      const { doc_id: name, text } = passages[place];
      show(at("followed"), h("span", { class: `dot ${hueOf(name)}`, "aria-hidden": "true" }), h("b", {}, name), " ", h("span", { class: "n" }, ranks.filter((rank, at) => rank !== ranks[at - 1]).join(" → ")), h("span", { class: "soft", dir: "auto" }, text ?? ""));
    },
  });
  oneTabStop(at("ranking"), "button.passage");
  return chart;
}

function windowsShown({ windows, run, position }, chart, told) {
  const byRound = Map.groupBy ? Map.groupBy(windows, window => window.round) : grouped(windows);
  show(at("windows"), [...byRound].map(([round, all]) => h("div", { class: "round" }, h("span", { class: "soft small n" }, `Round ${round + 1}`),
    h("div", { class: "row" }, all.map(window => {
      const bad = !window.orders.some(order => order.ranked);
      const mended = Object.values(window.repairs).reduce((sum, count) => sum + count, 0);
      const words = `${many(window.shown.length, "passage")}, ${many(window.completion_tokens, "token")}`;
      const mark = set => chart?.mark(set);
      return h("a", {
        class: `button chip${bad ? " bad" : ""}`, href: hash({ run, query: position, round, window: window.window }),
        onfocus: () => mark(new Set(window.shown)), onblur: () => mark(null), onpointerenter: () => mark(new Set(window.shown)), onpointerleave: () => mark(null),
        "data-window": `${round}.${window.window}`,
      }, h("b", {}, String(window.window + 1)), h("span", { class: "soft small n" }, words), bad ? h("span", { class: "small error" }, "no answer") : mended > 0 && h("span", { class: "small soft" }, many(mended, "repair")));
    })))));
}

async function windowAt(told, turn) {
  at("window").hidden = true;
  for (const chip of at("windows").querySelectorAll(".chip")) {
    if (chip.dataset.window === `${told.round}.${told.window}`) chip.setAttribute("aria-current", "true");
    else chip.removeAttribute("aria-current");
  }
  if (told.round === undefined) return;
  const asked = new URLSearchParams({ run: told.run, position: told.query, round: told.round, window: told.window });
  const found = await got(`/journal/window?${asked}`);
  if (turn !== looked) return;
  windowShown(found, hueOf);
  at("window").hidden = false;
  at("window").scrollIntoView();
  at("window-title").focus({ preventScroll: true });
}

function grouped(windows) {
  const found = new Map();
  for (const window of windows) found.set(window.round, [...(found.get(window.round) ?? []), window]);
  return found;
}

at("run").addEventListener("change", () => { location.hash = hash({ run: at("run").value }); });
at("pick").addEventListener("submit", event => {
  event.preventDefault();
  location.hash = hash({ run: at("run").value, find: at("find").value.trim() });
});
at("find").addEventListener("search", () => { if (!at("find").value && here().find) location.hash = hash({ run: at("run").value }); });
at("again").addEventListener("click", () => { runs = []; look(); });
addEventListener("hashchange", look);
let width = innerWidth;
addEventListener("resize", () => {
  if (shownQuery && !at("one").hidden && Math.abs(innerWidth - width) > 40) {
    width = innerWidth;
    chartShown(shownQuery.query, MOST);
  }
});
look();
