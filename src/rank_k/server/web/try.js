// Try: rank passages for a query, and show the reasoning and the ranking while the model is working.

import { RequestError, streamEvents, getJson } from "/page/api.js";
import { byId, h, hueClass, pluralize, formatSeconds, show, formatInteger } from "/page/dom.js";
import { makeSingleTabStop } from "/page/keys.js";
import { StreamedText, renderOrder } from "/page/mentions.js";
import { RankingList } from "/page/ranking.js";

const controls = { query: byId("query"), passages: byId("passages"), reasoning: byId("reasoning"), strategy: byId("strategy"), deadline: byId("deadline") };
let examples = null; // the demo's questions, which the server sends at the first click
let nextExample = 0;
let abortController = null;

// --- the request ---

/** The passages in a text: separated by blank lines, or one per line if there are no blank lines. */
export function splitPassages(text) {
  const blocks = text.replace(/\r\n?/g, "\n").split(/\n[^\S\n]*\n/).map(block => block.trim()).filter(Boolean);
  return blocks.length > 1 ? blocks : text.split(/\r\n?|\n/).map(line => line.trim()).filter(Boolean);
}

/** The passages in a file: JSON or JSONL with texts, or with objects that have a text. All other files are plain text. */
function parseTexts(content) {
  const text = item => typeof item === "string" ? item : item.text ?? item.contents ?? item.passage;
  const textsOf = items => items.length && items.every(item => typeof text(item ?? {}) === "string") ? items.map(text) : null;
  try {
    const parsed = JSON.parse(content);
    return textsOf(Array.isArray(parsed) ? parsed : parsed.documents ?? parsed.passages) ?? splitPassages(content);
  } catch {
    try {
      return textsOf(content.split("\n").filter(line => line.trim()).map(line => JSON.parse(line))) ?? splitPassages(content);
    } catch {
      return splitPassages(content);
    }
  }
}

function fillPassages(passages) {
  const hasLineBreaks = passages.some(text => /\n/.test(text.trim()));
  controls.passages.value = passages.map(text => text.trim().replace(/\n\s*\n/g, "\n")).join(hasLineBreaks ? "\n\n" : "\n");
  updateCount();
}

function updateCount() {
  const count = splitPassages(controls.passages.value).length;
  show(byId("count"), count ? pluralize(count, "passage") : "");
}

// --- the result ---

class RankingView {
  constructor(passages) {
    Object.assign(this, { passages, started: performance.now(), windows: new Map(), tokens: 0, windowCount: 0, isFinished: false });
    byId("outcome").hidden = false;
    byId("intro").hidden = true;
    byId("error").hidden = byId("seen").hidden = byId("said").hidden = true;
    show(byId("windows"));
    this.ranking = new RankingList(byId("ranking"), passages);
    this.clock = setInterval(() => this.updateStatus(), 200);
    this.updateStatus();
  }

  handleEvent(kind, data) {
    if (kind === "window") this.window(data);
    else if (kind === "trace") this.window(data).appendChunk(data);
    else if (kind === "order") {
      const window = this.window(data);
      if (!window.orders.length) {
        this.tokens += data.usage.prompt_tokens + data.usage.completion_tokens;
        this.windowCount += 1;
      }
      window.order(data);
      this.applyWindowOrder(data);
    } else if (kind === "ranking") this.rank(data.indices.map(index => [index]));
    else if (kind === "result") this.finish(data);
    else if (kind === "error") throw new RequestError(data.status, data.message, data.field);
  }

  window({ round, window, shown }) {
    const key = `${round}.${window}`;
    if (!this.windows.has(key)) {
      const view = new WindowView(round, window, shown, this);
      for (const other of this.windows.values()) if (other.orders.length) other.element.open = false;
      byId("windows").prepend(view.element);
      this.windows.set(key, view);
      this.ranking.mark(shown);
    }
    return this.windows.get(key);
  }

  /** Until the next ranking arrives, sort the passages of a window in the order of the answer, at the ranks they hold. */
  applyWindowOrder({ shown, tiers, ranked }) {
    if (!ranked) return;
    const order = tiers.flat();
    const inWindow = new Set(shown);
    const currentOrder = this.currentOrder ?? this.passages.map((_, place) => place);
    let next = 0;
    this.rank(currentOrder.map(place => [inWindow.has(place) ? order[next++] : place]));
  }

  rank(tiers) {
    this.currentOrder = tiers.flat();
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
    getJson(`/journal/queries?find=${encodeURIComponent(id)}`).then(({ queries: [query] }) => {
      if (!query) return;
      byId("seen").href = `/runs#run=${encodeURIComponent(query.run)}&query=${query.position + 1}`;
      byId("seen").hidden = false;
    }, () => {});
  }

  /** Stop the clock, after the last event. */
  end(notes) {
    clearInterval(this.clock);
    for (const window of this.windows.values()) window.end();
    this.isFinished = true;
    this.duration = performance.now() - this.started;
    this.notes = notes;
    this.updateStatus();
  }

  updateStatus() {
    const elapsed = this.isFinished ? this.duration : performance.now() - this.started;
    const rounds = new Set([...this.windows.keys()].map(key => key.split(".")[0])).size;
    const facts = [
      this.isFinished ? null : this.windows.size ? `Round ${rounds}` : "Waiting for the model",
      this.windowCount || this.isFinished ? pluralize(this.windowCount, "window") : null,
      this.tokens ? pluralize(this.tokens, "token") : null,
      formatSeconds(elapsed / 1000),
      ...(this.notes ?? []),
    ].filter(Boolean);
    byId("status").classList.toggle("busy", !this.isFinished);
    show(byId("status"), facts.join(" · "));
  }
}

class WindowView {
  constructor(round, window, shown, rankingView) {
    Object.assign(this, { shown, rankingView, orders: [] });
    this.facts = h("span", { class: "soft" }, pluralize(shown.length, "passage"));
    this.text = h("div", { class: "said", dir: "auto" });
    this.parts = { reasoning: this.makePart("Reasoning", "trace"), text: this.makePart("Answer", "answer") };
    this.element = h("details", { class: "window", open: true },
      h("summary", {}, h("span", {}, `Round ${round}, window ${window}`), this.facts), this.text);
    makeSingleTabStop(this.text, "button.mention");
  }

  /** A labeled part of the response, which is shown from its first chunk on. */
  makePart(title, kind) {
    const body = h("div", { class: kind, dir: "auto" });
    return { element: h("div", {}, h("p", { class: "part-title" }, title), body), streamed: new StreamedText(body, n => this.passage(n)) };
  }

  passage(n) {
    const place = this.shown[n - 1];
    if (place === undefined) return null;
    const title = this.rankingView.passages[place].slice(0, 120);
    return { hue: hueClass(place + 1), title, go: () => this.rankingView.ranking.point(place) };
  }

  appendChunk(chunk) {
    byId("said").hidden = false;
    const scrollToEnd = this.keepScrolledToEnd();
    for (const [name, part] of Object.entries(this.parts)) {
      if (!chunk[name]) continue;
      if (!part.element.isConnected) this.text.append(part.element);
      part.streamed.add(chunk[name]);
    }
    const first = this.text.querySelector("button.mention");
    if (first && !this.text.querySelector('button.mention[tabindex="0"]')) first.tabIndex = 0;
    scrollToEnd();
  }

  /** A function that scrolls to the end if the end is in view now. */
  keepScrolledToEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.text;
    return scrollHeight - scrollTop - clientHeight < 40 ? () => { this.text.scrollTop = this.text.scrollHeight; } : () => {};
  }

  order({ tiers, ranked, usage, repairs }) {
    byId("said").hidden = false;
    const scrollToEnd = this.keepScrolledToEnd();
    this.end();
    this.orders.push(tiers);
    if (ranked) {
      const order = renderOrder(tiers, place => this.shown.indexOf(place) + 1, n => this.passage(n));
      const answer = this.parts.text;
      if (answer.streamed.text.trim() === order.textContent) answer.element.remove(); // the answer would repeat the order
      this.text.append(h("p", { class: "part-title" }, "Order"), order);
    } else this.text.append(h("p", { class: "error" }, "The answer had no usable order: the window keeps its input order."));
    const repairText = Object.entries(repairs).map(([kind, count]) => `${kind.replaceAll("_", " ")} ${count}`).join(", ");
    const facts = [pluralize(this.shown.length, "passage"), `${formatInteger(usage.prompt_tokens)} tokens in, ${formatInteger(usage.completion_tokens)} out`, repairText];
    show(this.facts, facts.filter(Boolean).join(" · "));
    scrollToEnd();
  }

  end() {
    for (const part of Object.values(this.parts)) part.streamed.end();
  }
}

// --- sending ---

async function submitQuery() {
  const passages = splitPassages(controls.passages.value);
  if (abortController || !passages.length || !controls.query.value.trim()) return;
  abortController = new AbortController();
  const { signal } = abortController;
  byId("go").disabled = byId("example").disabled = true;
  byId("stop").disabled = false;
  const rankingView = new RankingView(passages);
  if (innerWidth < 900) byId("outcome").scrollIntoView();
  const body = { query: controls.query.value.trim(), documents: passages, stream: true };
  const { reasoning, strategy, deadline } = controls;
  if (reasoning.value && !reasoning.disabled) body.reasoning = /^\d+$/.test(reasoning.value) ? Number(reasoning.value) : reasoning.value;
  if (strategy.value && !strategy.disabled) body.strategy = strategy.value;
  if (deadline.value) body.deadline_seconds = Number(deadline.value);
  try {
    for await (const [kind, data] of streamEvents("/v2/rerank", body, signal)) rankingView.handleEvent(kind, data);
    if (!rankingView.isFinished) throw new RequestError(0, "The server closed the connection before the ranking was finished.");
  } catch (error) {
    rankingView.end([signal.aborted ? "stopped" : "no result"]);
    if (!signal.aborted) {
      show(byId("error"), error instanceof RequestError ? error.message : String(error));
      byId("error").hidden = false;
      if (!(error instanceof RequestError)) throw error;
    }
  } finally {
    abortController = null;
    byId("go").disabled = byId("example").disabled = false;
    byId("stop").disabled = true;
  }
}

/** Fill in the next question of the demo and rank it. */
async function showExample() {
  byId("example").disabled = true;
  show(byId("example-note"), "Loading the example …");
  try {
    const { questions, missing } = examples ??= await getJson("/demo");
    if (!questions.length) throw new RequestError(0, `The examples need another package. Run on the server: ${missing}`);
    const { query, passages } = questions[nextExample];
    nextExample = (nextExample + 1) % questions.length;
    controls.query.value = query;
    fillPassages(passages);
    show(byId("example"), "Show another example");
    show(byId("example-note"), "A question about Python, and passages of its documentation.");
    submitQuery();
  } catch (error) {
    byId("example").disabled = false;
    show(byId("example-note"), error.message);
    if (!(error instanceof RequestError)) throw error;
  }
}

function disableRanking(message) {
  show(byId("silent"), message);
  byId("silent").hidden = false;
  byId("go").disabled = byId("example").disabled = byId("intro").hidden = true;
}

byId("ask").addEventListener("submit", event => { event.preventDefault(); submitQuery(); });
byId("ask").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
});
byId("stop").addEventListener("click", () => { abortController?.abort(); byId("go").disabled = false; byId("go").focus(); });
controls.passages.addEventListener("input", updateCount);
byId("file").addEventListener("change", async event => {
  const [file] = event.target.files;
  if (file) fillPassages(parseTexts(await file.text()));
  event.target.value = "";
});
byId("example").addEventListener("click", showExample);

updateCount();
getJson("/v1/models").then(({ data: [model] }) => {
  if (!model) {
    disableRanking("This server has no model and only shows a journal: open Runs. To rank here, start it with --server or --model.");
    return;
  }
  const likelihood = model.method === "likelihood";
  show(byId("model"), `Model: ${model.id}${likelihood ? " (query likelihood, without reasoning)" : ""}`);
  controls.reasoning.disabled = controls.strategy.disabled = likelihood;
  byId("intro-reasoning").hidden = likelihood;
}, error => disableRanking(error.message));
