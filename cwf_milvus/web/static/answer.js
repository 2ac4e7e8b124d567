/** Answering: the hits in a grid, in steps, each with the thing framed. */

import { search, searchAtOnce, thumbnail } from "./api.js";
import { byId, el, named, photo, shown } from "./dom.js";
import { frameInWords, frameOf } from "./frame.js";
import { Grid } from "./grid.js";

const PAGE = 24;
const MOST = 2000; // hits that the service pages through
const FIELDS = 2; // of a hit's, on its card

export class Answering {
  /**
   * @param open shows a hit large.
   * @param answered told each answer.
   * @param failed told an Error.
   */
  constructor(open, answered, failed) {
    Object.assign(this, { answered, failed });
    this.hits = [];
    this.visible = [];
    const source = {
      get: (index) => this.visible[index],
      need: (_, last) => last >= this.visible.length && this.#more(),
      page: this,
      get length() {
        return this.page.visible.length;
      },
    };
    this.grid = new Grid(byId("hits"), source, (hit) => card(hit, () => open(hit.uri)), { caption: 4.7 });
    byId("retry").addEventListener("click", () => this.search(this.state));
  }

  /** Search anew; what is running is cancelled. */
  async search(state) {
    this.cancel();
    const running = (this.running = new AbortController());
    this.state = state;
    this.#say("Searching …", true);
    try {
      for await (const answer of search(askedOf(state, 0), running.signal)) this.#show(answer);
    } catch (error) {
      if (error.name !== "AbortError") this.failed(error);
    }
  }

  /** Give up what is running. */
  cancel() {
    this.running?.abort();
    this.running = null;
    this.loading = false;
    byId("answer").removeAttribute("aria-busy");
  }

  /** Show nothing. */
  clear() {
    this.cancel();
    this.state = this.answer = null;
    this.hits = [];
    this.narrow(0);
    byId("answer").hidden = true;
  }

  /** Say why there is no answer. */
  fail(error) {
    byId("answer").hidden = false;
    this.answer = null;
    this.hits = [];
    this.narrow(0);
    byId("absent").hidden = true;
    this.#say("");
    byId("failure-words").textContent = error.message;
    byId("failure").hidden = false;
  }

  /** Show those hits alone that are as certain, in hundredths. */
  narrow(certainty) {
    const hidden = new Set(this.state?.unlike);
    this.visible = this.hits.filter(
      (hit) => !hidden.has(hit.uri) && (certainty === 0 || (percentOf(hit) ?? 0) >= certainty),
    );
    this.grid.caption = this.hits.some((hit) => Object.keys(hit.fields).length) ? 5.9 : 4.7;
    this.grid.renew();
    byId("nothing").hidden = this.visible.length > 0 || !this.answer;
  }

  /** The hit of a photo, if it is one. */
  hitOf(uri) {
    return this.visible.find((hit) => hit.uri === uri) ?? null;
  }

  /** The hit before or after another. */
  beside(uri, step) {
    const at = this.visible.findIndex((hit) => hit.uri === uri);
    return at < 0 ? null : (this.visible[at + step] ?? null);
  }

  #show(answer) {
    const is_first = !this.running.shown;
    this.running.shown = true;
    this.answer = answer;
    this.hits = answer.hits;
    byId("failure").hidden = true;
    byId("absent").hidden = answer.found !== false;
    byId("nearest-words").hidden = !answer.hits.length;
    const can_tell = answer.hits.some((hit) => hit.certainty !== null) || this.state.certainty > 0;
    byId("certainty-part").hidden = !can_tell;
    if (is_first) this.grid.active = 0;
    this.narrow(this.state.certainty);
    if (answer.step === "final") {
      const { encode, search: found, stages } = answer.seconds;
      this.#say(`${this.#counted()}, in ${(encode + found + stages).toFixed(1)} s`);
    } else this.#say(`${this.#counted()} so far, looking closer …`, true);
    byId("answer").hidden = false;
    this.answered(answer);
  }

  #counted() {
    const count = this.visible.length;
    if (!this.answer.hits.length) return "No photos";
    return `${count}${this.answer.more ? " nearest photos, more below" : count === 1 ? " photo" : " photos"}`;
  }

  async #more() {
    const running = this.running;
    const offset = this.hits.length;
    const is_ready = this.answer?.more && this.answer.step === "final" && !this.loading && offset < MOST;
    if (!running || !is_ready) return;
    this.loading = true;
    try {
      const answer = await searchAtOnce(askedOf(this.state, offset), running.signal);
      if (running !== this.running) return;
      const known = new Set(this.hits.map((hit) => hit.uri));
      this.hits = [...this.hits, ...answer.hits.filter((hit) => !known.has(hit.uri))];
      this.answer = { ...this.answer, more: answer.more };
      this.loading = false;
      this.visible = this.hits.filter((hit) => !this.state.unlike.includes(hit.uri));
      this.grid.draw();
      this.#say(this.#counted());
    } catch (error) {
      if (error.name !== "AbortError") this.#say(error.message);
      if (this.answer) this.answer = { ...this.answer, more: false };
    } finally {
      this.loading = false;
    }
  }

  #say(words, is_busy = false) {
    byId("progress").textContent = words;
    byId("answer").hidden = false;
    byId("failure").hidden = true;
    if (is_busy) byId("answer").setAttribute("aria-busy", "true");
    else byId("answer").removeAttribute("aria-busy");
  }
}

/** What a state asks of the service. */
function askedOf(state, offset) {
  const { query, uri, box, like, unlike, filter, certainty } = state;
  const subject = like.length ? { like, unlike } : { ...(query ? { query } : { uri }), box };
  return {
    ...subject,
    filter: filter || null,
    limit: PAGE,
    offset,
    min_certainty: certainty ? (certainty - 0.5) / 100 : null, // as rounded on the cards
  };
}

/** How sure, in hundredths; null where it cannot be told. */
const percentOf = (hit) => (hit.certainty === null ? null : Math.round(hit.certainty * 100));

/** How sure, in words and as a number. */
export function certaintyOf(hit) {
  if (hit.certainty === null) return el("span", { class: "certainty" }, `score ${hit.score.toFixed(3)}`);
  const percent = percentOf(hit);
  const bar = el("meter", { min: 0, max: 100, value: percent, "aria-hidden": "true" });
  return el("span", { class: "certainty" }, el("span", {}, hit.certainty_words), " ", bar, el("b", {}, `${percent}\u00a0%`));
}

function card(hit, open) {
  const fields = Object.entries(hit.fields).slice(0, FIELDS);
  return el(
    "button",
    { type: "button", class: "card", click: open, "aria-label": cardInWords(hit) },
    el("span", { class: "picture" }, photo(thumbnail(hit.uri, 512), ""), frameOf(hit)),
    el(
      "span",
      { class: "caption" },
      named(hit.name),
      certaintyOf(hit),
      el("span", { class: "few", dir: "auto" }, fields.map(([name, value]) => `${name} ${shown(value)}`).join(" · ")),
    ),
  );
}

function cardInWords(hit) {
  const sure = hit.certainty === null ? "" : `${hit.certainty_words}, ${percentOf(hit)} percent`;
  return [`${hit.rank}. ${hit.name}`, sure, frameInWords(hit)].filter(Boolean).join(", ");
}
