// Judge: one pair of rankings at a time, with keys or buttons. The server stores the judgments and the progress of each
// judge; the browser stores only the judge's name.

import { downloadFile, getJson, postJson } from "/page/api.js";
import { byId, h, pluralize, show } from "/page/dom.js";

const NAME_STORAGE = "rank-k judge";
const KEYS = { 1: "left", 2: "right", 0: "tie" };
const ANNOUNCEMENTS = { left: "Ranking 1 preferred", right: "Ranking 2 preferred", tie: "No difference" };
const MIN_DELAY = 300; // milliseconds, so that a double key press does not judge the next pair

let judge = localStorage.getItem(NAME_STORAGE) ?? "";
let state = null;
let busy = false;
let visibleMilliseconds = 0; // the time for which the pair was visible, before `visibleSince`
let visibleSince = null; // when the pair became visible; null while the page is hidden

const SECTIONS = ["none", "welcome", "work", "end"];
const showSection = name => SECTIONS.forEach(part => { byId(part).hidden = part !== name; });

/** Show the state that `work` returns. If `work` fails, only show the error. */
async function runAction(work, announcement) {
  if (busy) return;
  busy = true;
  byId("told").hidden = true;
  document.querySelectorAll(".choices button").forEach(button => { button.disabled = true; });
  try {
    state = await work();
    renderState(announcement);
  } catch (error) {
    if (error.status === undefined) throw error;
    showError(error);
  } finally {
    busy = false;
    document.querySelectorAll(".choices button").forEach(button => { button.disabled = false; button.classList.remove("chosen"); });
  }
}

function showError(error) {
  if (!state) showSection("welcome");
  byId("told").hidden = false;
  show(byId("told"), error.message);
}

const loadNext = () => runAction(() => getJson(`/judge/question?judge=${encodeURIComponent(judge)}`));

function choose(choice) {
  if (!state?.question || busy || performance.now() - (visibleSince ?? Infinity) + visibleMilliseconds < MIN_DELAY) return;
  const seconds = (visibleMilliseconds + (visibleSince === null ? 0 : performance.now() - visibleSince)) / 1000;
  document.querySelector(`[data-choice=${choice}]`).classList.add("chosen");
  runAction(() => postJson("/judge/choice", { judge, token: state.question.token, choice, seconds }), ANNOUNCEMENTS[choice]);
}

function undo() {
  if (state?.can_undo) runAction(() => postJson("/judge/undo", { judge }), "Judgment undone");
}

function renderState(announcement) {
  const { question, done, total, identical } = state;
  showSection(question ? "work" : "end");
  byId("foot").hidden = false;
  show(byId("who"), state.judge);
  show(byId("heard"), announcement ? `${announcement}. ` : "", `${done} of ${total} judged.`);
  if (question) {
    show(byId("count"), `${done} of ${total} judged`);
    Object.assign(byId("progress"), { max: total, value: done });
    byId("undo").disabled = !state.can_undo;
    show(byId("asked"), question.query);
    byId("asked").dir = "auto";
    byId("asked").classList.toggle("long", question.query.length > 140);
    byId("translation").hidden = question.translation === null;
    byId("translation").dir = "auto";
    show(byId("translation"), question.translation ?? "");
    show(byId("left"), renderRanking(question.left, question.right, "ranking 2"));
    show(byId("right"), renderRanking(question.right, question.left, "ranking 1"));
    setExpanded(false);
    byId("asked").focus({ preventScroll: true });
  } else {
    show(byId("end-told"), `You have judged ${pluralize(done, "pair")} of rankings.`,
      identical ? ` ${pluralize(identical, "pair")} with identical rankings ${identical === 1 ? "was" : "were"} left out.` : "");
    byId("undo-last").hidden = !state.can_undo;
    byId("end-title").focus({ preventScroll: true });
  }
  scrollTo({ top: 0, behavior: "instant" });
  visibleMilliseconds = 0;
  visibleSince = document.hidden ? null : performance.now();
}

/** The passages of a ranking as list items, each with its rank in the other ranking, `otherPassages`. */
function renderRanking(passages, otherPassages, otherName) {
  const places = new Map(otherPassages.map((passage, place) => [passage.number, place + 1]));
  return passages.map(({ number, text, truncated }, place) => {
    const id = `${otherName.at(-1)}-${place}`;
    const body = h("div", { class: "wording short", dir: "auto", id }, text);
    const more = h("button", { type: "button", class: "plain small more", "aria-expanded": "false", "aria-controls": id, hidden: true,
      onclick: () => expand(more, body, body.classList.contains("short")) });
    return h("li", { class: "offered", "data-number": number,
      onpointerenter: () => mark(number, true), onpointerleave: () => mark(number, false) },
      h("span", { class: "place", "aria-hidden": "true" }, place + 1),
      h("div", {}, body, h("div", { class: "under small soft" }, more,
        truncated && h("span", {}, "The passage is truncated."),
        places.has(number) && h("span", {}, `rank ${places.get(number)} in ${otherName}`))));
  });
}

/** Highlight a passage on both sides while the pointer is over it. */
function mark(number, on) {
  const sameItems = document.querySelectorAll(`.offered[data-number="${number}"]`);
  sameItems.forEach(item => item.classList.toggle("same", on && sameItems.length > 1));
}

function expand(button, body, isFull) {
  body.classList.toggle("short", !isFull);
  button.setAttribute("aria-expanded", isFull);
  show(button, isFull ? "Show less" : "Show all", h("span", { class: "unseen" }, ` of passage ${Number(body.id.split("-")[1]) + 1}`));
}

/** Show all passages in full, or shorten all of them. Passages that are not shortened have no button. */
function setExpanded(isFull) {
  byId("all").setAttribute("aria-pressed", isFull);
  show(byId("all"), isFull ? "Shorten all" : "Show all in full", " ", h("kbd", {}, "X"));
  const bodies = [...document.querySelectorAll(".sides .wording")];
  bodies.forEach(body => expand(body.parentElement.querySelector(".more"), body, false));
  const long = bodies.map(body => body.scrollHeight > body.clientHeight + 2);
  bodies.forEach((body, place) => {
    const more = body.parentElement.querySelector(".more");
    more.hidden = !long[place];
    if (long[place]) expand(more, body, isFull);
  });
  byId("all").disabled = !long.some(Boolean);
}

const toggleExpanded = () => setExpanded(byId("all").getAttribute("aria-pressed") !== "true");

async function saveJudgments() {
  try {
    await downloadFile("/judge/judgments.jsonl", "judgments.jsonl");
  } catch (error) {
    if (error.status === undefined) throw error;
    showError(error);
  }
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || byId("work").hidden && byId("end").hidden) return;
  if (event.target.closest("input, textarea, select, dialog")) return;
  const key = event.key.toLowerCase();
  if (key in KEYS) choose(KEYS[key]);
  else if (key === "u") undo();
  else if (key === "x" && !byId("work").hidden) toggleExpanded();
  else return;
  event.preventDefault();
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden && visibleSince !== null) {
    visibleMilliseconds += performance.now() - visibleSince;
    visibleSince = null;
  } else if (!document.hidden) visibleSince ??= performance.now();
});

document.querySelectorAll("[data-choice]").forEach(button => button.addEventListener("click", () => choose(button.dataset.choice)));
byId("undo").addEventListener("click", undo);
byId("undo-last").addEventListener("click", undo);
byId("all").addEventListener("click", toggleExpanded);
byId("download").addEventListener("click", saveJudgments);
byId("leave").addEventListener("click", () => {
  localStorage.removeItem(NAME_STORAGE);
  location.reload();
});
byId("enter").addEventListener("submit", event => {
  event.preventDefault();
  judge = byId("name").value.trim();
  if (!judge) return;
  localStorage.setItem(NAME_STORAGE, judge);
  loadNext();
});
let width = innerWidth;
addEventListener("resize", () => { // only a new width changes the line breaks; phones change the height while scrolling
  if (width !== innerWidth && state?.question) setExpanded(byId("all").getAttribute("aria-pressed") === "true");
  width = innerWidth;
});

try {
  const routeGroups = await getJson("/page/rooms.json");
  if (!routeGroups.includes("judge")) showSection("none");
  else if (judge) loadNext();
  else showSection("welcome");
} catch (error) {
  if (error.status === undefined) throw error;
  showError(error);
}
