/** The page as a whole: its state stands in the address, and every room shows its part of it. */

import { showNumbers } from "./about.js";
import { adding } from "./adding.js";
import { Answering } from "./answer.js";
import { ask, choose } from "./api.js";
import { Asking } from "./ask.js";
import { Alike, Browsing } from "./browse.js";
import { Detail } from "./detail.js";
import { byId, el } from "./dom.js";
import { FilterLine } from "./filter.js";
import { addressOf, NOTHING_ASKED, read, searchOf } from "./state.js";

let state = read();
let collections = [];
let searched = null; // what the answer on the screen answers to

const asking = new Asking(go, say);
const answering = new Answering(open, answered, failed);
const browsing = new Browsing(go, open, failed);
const alike = new Alike(go, open);
const filterLine = new FilterLine(go);
const detail = new Detail({ search: searchWith, like, unlike, step, open, close: closeDetail });
adding(() => {
  browsing.forget();
  start();
});

/** Change the state: a new address, and what follows from it. */
function go(changes, { replace = false } = {}) {
  const before = addressOf(state);
  state = { ...state, ...changes };
  replace ||= addressOf(state) === before;
  const opened = Boolean(changes.photo) && (!replace || history.state?.opened);
  history[replace ? "replaceState" : "pushState"]({ opened }, "", addressOf(state));
  show();
}

/** Show a photo large. */
function open(uri) {
  go({ photo: uri }, { replace: detail.uri !== null && detail.uri !== undefined });
}

function closeDetail() {
  detail.uri = null;
  if (history.state?.opened) history.back();
  else go({ photo: null }, { replace: true });
}

function step(uri, way) {
  const beside = state.view === "search" && answering.beside(uri, way);
  if (beside) go({ photo: beside.uri }, { replace: true });
}

function searchWith(uri) {
  go({ ...NOTHING_ASKED, view: "search", uri });
  scrollTo(0, 0);
}

function like(uri) {
  const others = state.view === "search" ? state.like.filter((one) => one !== uri) : [];
  go({ view: "search", like: [...others, uri], unlike: state.unlike.filter((one) => one !== uri), photo: null });
  scrollTo(0, 0);
}

function unlike(uri) {
  // A stored photo that was asked with is what the answer is to stay like.
  const asked = state.uri && !state.like.length && !state.box ? [state.uri] : state.like;
  const near = asked.filter((one) => one !== uri);
  go({ like: near, unlike: [...state.unlike.filter((one) => one !== uri), uri], photo: null });
}

/** Bring the page to the state. */
function show() {
  const views = ["search", "browse", "alike", "about"];
  for (const view of views) {
    byId(view).hidden = view !== state.view;
    const link = byId(`to-${view}`);
    link.href = addressOf({ ...state, view, photo: null });
    if (view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const is_asked = Boolean(state.query || state.uri || state.like.length);
  byId("filter-form").hidden = !(state.view === "browse" || (state.view === "search" && is_asked));
  filterLine.show(state.filter);
  showCertainty();
  if (state.view === "search") showSearch(is_asked);
  if (state.view === "browse") browsing.show(state);
  if (state.view === "alike") alike.show(state, current()?.graph ?? false);
  if (state.view === "about") showNumbers();
  if (state.photo) showDetail();
  else detail.hide();
}

function showSearch(is_asked) {
  asking.show(state);
  const wanted = is_asked ? searchOf(state) : null;
  if (wanted === searched) {
    answering.narrow(state.certainty);
    return;
  }
  searched = wanted;
  filterLine.fail(null);
  say("");
  if (is_asked) answering.search(state);
  else answering.clear();
}

function answered(answer) {
  const { width, height } = answer.query;
  if (width && !state.like.length) asking.measure(width, height, state.box);
  if (state.photo && state.view === "search") showDetail();
}

function showDetail() {
  const hit = state.view === "search" ? answering.hitOf(state.photo) : null;
  const [width, height] = asking.size ?? [];
  const query = hit && { picture: asking.pictureOf(state), width, height, box: state.box };
  const beside = hit ? [-1, 1].map((way) => answering.beside(state.photo, way)) : [null, null];
  detail.show(state.photo, hit, query?.picture ? query : null, beside);
}

function showCertainty() {
  byId("certainty").value = state.certainty;
  byId("certainty-words").textContent = state.certainty ? `≥ ${state.certainty}\u00a0%` : "any";
}

/** Say what is going on, or what went wrong, beside where one asks. */
function say(words) {
  const is_error = words instanceof Error;
  byId("asking-words").textContent = is_error ? words.message : words;
  byId("asking-words").classList.toggle("failure", is_error);
}

/** Say what went wrong with an answer: at the filter line where it is the filter. */
function failed(error) {
  if (error.status === 400 && state.filter && /filter/i.test(error.message)) {
    filterLine.fail(error.message);
    if (state.view === "search") answering.clear();
  } else if (state.view === "search") answering.fail(error);
  else say(error);
}

const current = () => collections.find(({ name }) => name === state.collection) ?? collections[0];

function chooseCollection() {
  const { name, writable, urls, photos } = current();
  choose(name);
  byId("collection").replaceChildren(
    ...collections.map((one) => el("option", { value: one.name, selected: one.name === name }, one.name)),
  );
  byId("collection-part").hidden = collections.length < 2;
  byId("add-label").hidden = !writable;
  byId("url-form").hidden = !urls;
  byId("count").textContent = `${photos.toLocaleString("en-GB")} photos`;
}

/** Ask what is served, and show it. */
async function start() {
  try {
    collections = await ask("collections");
  } catch (error) {
    say(error);
    return;
  }
  await renew();
}

async function renew() {
  chooseCollection();
  show();
  browsing.offer(await filterLine.offer());
  byId("by").value = state.by ?? "";
  asking.offer((uri) => searchWith(uri));
}

byId("collection").addEventListener("change", async (event) => {
  const collection = event.target.value;
  state = { ...state, ...NOTHING_ASKED, collection, filter: "", group: "", by: null };
  history.pushState({}, "", addressOf(state));
  await renew();
});
byId("certainty").addEventListener("input", (event) => {
  state = { ...state, certainty: Number(event.target.value) };
  showCertainty();
  answering.narrow(state.certainty);
});
byId("certainty").addEventListener("change", () => go({}, { replace: true }));
byId("back-to-photo").addEventListener("click", () => go({ like: [], unlike: [] }));
for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ view: link.dataset.view, photo: null });
  });
}
addEventListener("popstate", async () => {
  const before = state.collection;
  state = read();
  if (state.collection !== before && collections.length) await renew();
  else show();
});

start();
