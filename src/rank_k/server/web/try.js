// Try: a query and passages in, the model's thought and the ranking as they form.

import { Refused, events, got } from "/page/api.js";
import { at, h, hue, many, seconds, show, whole } from "/page/dom.js";
import { oneTabStop } from "/page/keys.js";
import { Growing, orderShown } from "/page/mentions.js";
import { RankingList } from "/page/ranking.js";

const controls = { query: at("query"), passages: at("passages"), reasoning: at("reasoning"), strategy: at("strategy"), deadline: at("deadline") };
let demo = [];
let stopping = null;

// --- what is asked ---

/** Passages in a text: with a blank line between any two, or else one on each line. */
export function passagesIn(text) {
  const blocks = text.replace(/\r\n?/g, "\n").split(/\n[^\S\n]*\n/).map(block => block.trim()).filter(Boolean);
  return blocks.length > 1 ? blocks : text.split(/\r\n?|\n/).map(line => line.trim()).filter(Boolean);
}

/** The texts in a file: JSON or JSON lines of texts or of objects with a text; anything else is plain text. */
function textsIn(content) {
  const text = item => typeof item === "string" ? item : item.text ?? item.contents ?? item.passage;
  const all = items => items.length && items.every(item => typeof text(item ?? {}) === "string") ? items.map(text) : null;
  try {
    const found = JSON.parse(content);
    return all(Array.isArray(found) ? found : found.documents ?? found.passages) ?? passagesIn(content);
  } catch {
    try {
      return all(content.split("\n").filter(line => line.trim()).map(line => JSON.parse(line))) ?? passagesIn(content);
    } catch {
      return passagesIn(content);
    }
  }
}

function filledIn(passages) {
  const several = passages.some(text => /\n/.test(text.trim()));
  controls.passages.value = passages.map(text => text.trim().replace(/\n\s*\n/g, "\n")).join(several ? "\n\n" : "\n");
  counted();
}

function counted() {
  const count = passagesIn(controls.passages.value).length;
  show(at("count"), count ? many(count, "passage") : "");
}

// --- the outcome ---

class Outcome {
  constructor(passages) {
    Object.assign(this, { passages, started: performance.now(), windows: new Map(), tokens: 0, asked: 0, settled: false });
    at("outcome").hidden = false;
    at("error").hidden = at("seen").hidden = at("said").hidden = true;
    show(at("windows"));
    this.ranking = new RankingList(at("ranking"), passages);
    this.clock = setInterval(() => this.tell(), 200);
    this.tell();
  }

  hear(kind, told) {
    if (kind === "window") this.window(told);
    else if (kind === "trace") this.window(told).say(told);
    else if (kind === "order") {
      const window = this.window(told);
      if (!window.orders.length) {
        this.tokens += told.usage.prompt_tokens + told.usage.completion_tokens;
        this.asked += 1;
      }
      window.order(told);
      this.forming(told);
    } else if (kind === "ranking") this.rank(told.indices.map(index => [index]));
    else if (kind === "result") this.finish(told);
    else if (kind === "error") throw new Refused(told.status, told.message, told.field);
  }

  window({ round, window, shown }) {
    const key = `${round}.${window}`;
    if (!this.windows.has(key)) {
      const made = new WindowShown(round, window, shown, this);
      for (const other of this.windows.values()) if (other.orders.length) other.element.open = false;
      at("windows").prepend(made.element);
      this.windows.set(key, made);
      this.ranking.mark(shown);
    }
    return this.windows.get(key);
  }

  /** Between two rankings: a window's passages in the places they hold together, in the order that was given. */
  forming({ shown, tiers, ranked }) {
    if (!ranked) return;
    const order = tiers.flat();
    const inside = new Set(shown);
    const now = this.now ?? this.passages.map((_, place) => place);
    let next = 0;
    this.rank(now.map(place => [inside.has(place) ? order[next++] : place]));
  }

  rank(tiers) {
    this.now = tiers.flat();
    this.ranking.set(tiers);
  }

  finish({ results, usage, meta, id }) {
    const tiers = [];
    for (const { index, tied } of results) {
      if (tied) tiers.at(-1).push(index);
      else tiers.push([index]);
    }
    this.ranking.mark([]);
    this.rank(tiers);
    this.tokens = usage.total_tokens;
    this.end(meta.warnings);
    got(`/journal/queries?find=${encodeURIComponent(id)}`).then(({ queries: [query] }) => {
      if (!query) return;
      at("seen").href = `/runs#run=${encodeURIComponent(query.run)}&query=${query.position}`;
      at("seen").hidden = false;
    }, () => {});
  }

  /** Nothing more comes. */
  end(notes) {
    clearInterval(this.clock);
    for (const window of this.windows.values()) window.end();
    this.settled = true;
    this.took = performance.now() - this.started;
    this.notes = notes;
    this.tell();
  }

  tell() {
    const passed = this.settled ? this.took : performance.now() - this.started;
    const rounds = new Set([...this.windows.keys()].map(key => key.split(".")[0])).size;
    const facts = [
      this.settled ? null : this.windows.size ? `Round ${rounds}` : "Waiting",
      this.asked || this.settled ? many(this.asked, "window") : null,
      this.tokens ? many(this.tokens, "token") : null,
      seconds(passed / 1000),
      ...(this.notes ?? []),
    ].filter(Boolean);
    at("status").classList.toggle("busy", !this.settled);
    show(at("status"), facts.join(" · "));
  }
}

class WindowShown {
  constructor(round, window, shown, outcome) {
    Object.assign(this, { shown, outcome, orders: [] });
    this.facts = h("span", { class: "soft" }, many(shown.length, "passage"));
    this.text = h("div", { class: "said", dir: "auto" });
    this.trace = new Growing(h("div", { class: "trace", dir: "auto" }), n => this.passage(n));
    this.answer = new Growing(h("div", { class: "answer", dir: "auto" }), n => this.passage(n));
    this.element = h("details", { class: "window", open: true },
      h("summary", {}, h("span", {}, `Round ${round}, window ${window}`), this.facts), this.text);
    oneTabStop(this.text, "button.mention");
  }

  passage(n) {
    const place = this.shown[n - 1];
    if (place === undefined) return null;
    const title = this.outcome.passages[place].slice(0, 120);
    return { hue: hue(place + 1), title, go: () => this.outcome.ranking.point(place) };
  }

  say({ reasoning, text }) {
    at("said").hidden = false;
    const follow = this.followed();
    for (const [part, piece] of [[this.trace, reasoning], [this.answer, text]]) {
      if (!piece) continue;
      if (!part.element.isConnected) this.text.append(part.element);
      part.add(piece);
    }
    const first = this.text.querySelector("button.mention");
    if (first && !this.text.querySelector('button.mention[tabindex="0"]')) first.tabIndex = 0;
    follow();
  }

  /** What scrolls on to the end if that is what is looked at now. */
  followed() {
    const { scrollHeight, scrollTop, clientHeight } = this.text;
    return scrollHeight - scrollTop - clientHeight < 40 ? () => { this.text.scrollTop = this.text.scrollHeight; } : () => {};
  }

  order({ tiers, ranked, usage, repairs }) {
    at("said").hidden = false;
    const follow = this.followed();
    this.end();
    if (ranked) this.answer.element.remove(); // it is shown as it was read; word for word it stands in Runs
    this.orders.push(tiers);
    const number = place => this.shown.indexOf(place) + 1;
    if (ranked) this.text.append(orderShown(tiers, number, n => this.passage(n)));
    else this.text.append(h("p", { class: "error" }, "No usable answer: the window keeps its order."));
    const mended = Object.entries(repairs).map(([kind, count]) => `${kind.replaceAll("_", " ")} ${count}`).join(", ");
    const facts = [many(this.shown.length, "passage"), `${whole(usage.prompt_tokens)} + ${whole(usage.completion_tokens)} tokens`, mended];
    show(this.facts, facts.filter(Boolean).join(" · "));
    follow();
  }

  end() {
    this.trace.end();
    this.answer.end();
  }
}

// --- asking ---

async function ask() {
  const passages = passagesIn(controls.passages.value);
  if (stopping || !passages.length || !controls.query.value.trim()) return;
  stopping = new AbortController();
  const { signal } = stopping;
  at("go").disabled = true;
  at("stop").disabled = false;
  const outcome = new Outcome(passages);
  if (innerWidth < 900) at("outcome").scrollIntoView();
  const body = { query: controls.query.value.trim(), documents: passages, stream: true };
  const { reasoning, strategy, deadline } = controls;
  if (reasoning.value && !reasoning.disabled) body.reasoning = /^\d+$/.test(reasoning.value) ? Number(reasoning.value) : reasoning.value;
  if (strategy.value && !strategy.disabled) body.strategy = strategy.value;
  if (deadline.value) body.deadline_seconds = Number(deadline.value);
  try {
    for await (const [kind, told] of events("/v2/rerank", body, signal)) outcome.hear(kind, told);
    if (!outcome.settled) throw new Refused(0, "The server went away before it was done.");
  } catch (error) {
    outcome.end([signal.aborted ? "stopped" : "no result"]);
    if (!signal.aborted) {
      show(at("error"), error instanceof Refused ? error.message : String(error));
      at("error").hidden = false;
      if (!(error instanceof Refused)) throw error;
    }
  } finally {
    stopping = null;
    at("go").disabled = false;
    at("stop").disabled = true;
  }
}

function without(why) {
  show(at("silent"), why);
  at("silent").hidden = false;
  at("go").disabled = true;
}

at("ask").addEventListener("submit", event => { event.preventDefault(); ask(); });
at("ask").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
at("stop").addEventListener("click", () => { stopping?.abort(); at("go").disabled = false; at("go").focus(); });
controls.passages.addEventListener("input", counted);
at("file").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (file) filledIn(textsIn(await file.text()));
  event.target.value = "";
});
at("demo").addEventListener("change", event => {
  const chosen = demo[Number(event.target.value)];
  if (event.target.value === "" || !chosen) return;
  controls.query.value = chosen.query;
  filledIn(chosen.passages);
});

counted();
got("/v1/models").then(({ data: [model] }) => {
  if (!model) {
    without("This server has no model: it shows a journal. Look at Runs; or start it with --server or --model to rank.");
    return;
  }
  const likelihood = model.method === "likelihood";
  show(at("model"), likelihood ? `${model.id}, by the likelihood of the query: nothing is thought` : model.id);
  controls.reasoning.disabled = controls.strategy.disabled = likelihood;
}, error => without(error.message)).then(() => got("/demo")).then(({ questions }) => {
  demo = questions;
  at("demo").hidden = !demo.length;
  at("demo").append(...questions.map(({ query }, number) => h("option", { value: number }, query)));
}, () => { at("demo").hidden = true; });
