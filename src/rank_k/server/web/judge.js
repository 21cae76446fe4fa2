// Judging: one question at a time, by keys or buttons. The server keeps what is said and knows where a judge stands;
// here is only the name. Texts are shown as text, each line in its own direction.

import { downloadFile, getJson, postJson } from "/page/api.js";
import { byId, h, pluralize, show } from "/page/dom.js";

const NAME_STORAGE = "rank-k judge";
const KEYS = { 1: "left", 2: "right", 0: "tie" };
const ANNOUNCEMENTS = { left: "Ranking 1 preferred", right: "Ranking 2 preferred", tie: "No difference" };
const MIN_DELAY = 300; // milliseconds: a key pressed twice is not a judgment of what comes next

let judge = localStorage.getItem(NAME_STORAGE) ?? "";
let state = null;
let busy = false;
let visibleMilliseconds = 0; // milliseconds of the question in sight, before `visibleSince`
let visibleSince = null; // when it came in sight; null while it is not

const SECTIONS = ["none", "welcome", "work", "end"];
const showSection = name => SECTIONS.forEach(part => { byId(part).hidden = part !== name; });

/** Do `work`, which brings the state that is shown next; say what went wrong, and change nothing then. */
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
  if (state?.can_undo) runAction(() => postJson("/judge/undo", { judge }), "Taken back");
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
      identical ? ` Where both rankings are the same (${identical}), nothing was asked.` : "");
    byId("undo-last").hidden = !state.can_undo;
    byId("end-title").focus({ preventScroll: true });
  }
  scrollTo({ top: 0, behavior: "instant" });
  visibleMilliseconds = 0;
  visibleSince = document.hidden ? null : performance.now();
}

/** The passages of a ranking. `otherPassages`: those of the other one, to say where the same passage stands there. */
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
        truncated && h("span", {}, "Only the beginning is shown."),
        places.has(number) && h("span", {}, `no. ${places.get(number)} in ${otherName}`))));
  });
}

/** The same passage on both sides, while it is pointed at. */
function mark(number, on) {
  const sameItems = document.querySelectorAll(`.offered[data-number="${number}"]`);
  sameItems.forEach(item => item.classList.toggle("same", on && sameItems.length > 1));
}

function expand(button, body, isFull) {
  body.classList.toggle("short", !isFull);
  button.setAttribute("aria-expanded", isFull);
  show(button, isFull ? "Show less" : "Show all", h("span", { class: "unseen" }, ` of passage ${Number(body.id.split("-")[1]) + 1}`));
}

/** All passages in full, or all short; where a short one shows everything, there is nothing to press. */
function setExpanded(isFull) {
  byId("all").setAttribute("aria-pressed", isFull);
  show(byId("all"), isFull ? "Show all short" : "Show all in full", " ", h("kbd", {}, "X"));
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
addEventListener("resize", () => { // a phone's bars come and go: only the width says how long texts are
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
