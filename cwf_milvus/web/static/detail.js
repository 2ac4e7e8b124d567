/** The large view of a photo: beside the query where it is a hit, and what can be done with it. */

import { address, ask, thumbnail } from "./api.js";
import { certaintyOf } from "./answer.js";
import { byId, el, fieldList, named, photo } from "./dom.js";
import { frameOf, isVerified } from "./frame.js";
import { pairOf } from "./pair.js";

const LARGE = 1024; // pixels of the longest side
const CLASSES = 8;
const STACKED = matchMedia("(max-width: 47.99rem)");

export class Detail {
  /**
   * @param does what the buttons do: search, like, unlike, step and close, each given the uri.
   */
  constructor(does) {
    this.does = does;
    this.dialog = byId("detail");
    this.body = byId("detail-body");
    this.dialog.addEventListener("close", () => this.uri && does.close());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    byId("detail-close").addEventListener("click", () => this.dialog.close());
    byId("detail-before").addEventListener("click", () => does.step(this.uri, -1));
    byId("detail-after").addEventListener("click", () => does.step(this.uri, 1));
    this.dialog.addEventListener("keydown", (event) => this.#turn(event));
    STACKED.addEventListener("change", () => this.again?.());
  }

  /** Close it, without telling. */
  hide() {
    this.uri = this.again = null;
    if (this.dialog.open) this.dialog.close();
  }

  /**
   * Show a photo.
   *
   * @param uri of the photo.
   * @param hit what the answer says of it; null where it is no hit.
   * @param query the picture, width, height and box that were asked with; null where there is none.
   * @param neighbours tell whether there is one before, and after.
   */
  async show(uri, hit, query, neighbours) {
    this.uri = uri;
    this.again = () => this.show(uri, hit, query, neighbours);
    byId("detail-before").disabled = !neighbours[0];
    byId("detail-after").disabled = !neighbours[1];
    if (!this.dialog.open) {
      this.body.replaceChildren();
      this.dialog.showModal();
    }
    let told;
    try {
      told = await ask("photo", { uri });
    } catch (error) {
      if (this.uri === uri) this.#failed(uri, error);
      return;
    }
    if (this.uri !== uri) return;
    byId("detail-name").replaceChildren(named(hit ? `${hit.rank}. ${told.name}` : told.name));
    this.body.replaceChildren(
      this.#picture(told, hit, query),
      el("div", { class: "facts" }, this.#actions(told, hit), hit ? verdict(hit, query) : null, el("section", {}, this.#about(told, hit))),
    );
  }

  #failed(uri, error) {
    byId("detail-name").replaceChildren(named(uri.split("/").pop()));
    this.body.replaceChildren(el("p", { class: "failure", role: "alert" }, error.message));
  }

  #picture(told, hit, query) {
    const picture = thumbnail(told.uri, LARGE);
    if (hit && query?.width) return pairOf(query, { ...hit, picture }, STACKED.matches);
    const single = el("div", { class: "single" }, photo(picture, told.name), hit ? frameOf(hit) : null);
    single.style.aspectRatio = `${told.width} / ${told.height}`;
    single.style.width = `min(100%, calc(65vh * ${told.width / told.height}))`;
    return single;
  }

  #actions({ uri }, hit) {
    const button = (words, work, kind = "") => el("button", { type: "button", class: kind, click: work }, words);
    const copied = el("span", { class: "quiet", role: "status" });
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(uri);
        copied.textContent = "Copied.";
      } catch {
        copied.textContent = "The browser does not let it: the path stands below.";
      }
    };
    return el(
      "div",
      { class: "actions" },
      button("Search with this", () => this.does.search(uri), "primary"),
      button("More like this", () => this.does.like(uri)),
      hit ? button("Not this", () => this.does.unlike(uri)) : null,
      el("a", { class: "button", href: address("original", { uri }), target: "_blank", rel: "noopener" }, "Open the original"),
      isHidden(uri) ? null : button("Copy its path", copy),
      copied,
    );
  }

  #about(told, hit) {
    const { uri, width, height } = told;
    const classes = told.classes.slice(0, CLASSES).join(", ");
    const explanation = el("details", {
      toggle: (event) => {
        if (event.target.open && !event.target.querySelector("img")) {
          event.target.append(photo(address("explanation", { uri }), `What the network sees in ${told.name}: class maps and regions`));
        }
      },
    });
    explanation.append(el("summary", {}, "What the network sees in it"));
    return [
      fieldList(told.fields),
      el(
        "dl",
        { class: "fields" },
        el("dt", {}, "Size"),
        el("dd", {}, `${width} × ${height} pixels`),
        isHidden(uri) ? null : [el("dt", {}, "Path"), el("dd", { dir: "auto" }, uri)],
        hit?.classes.length ? null : [el("dt", {}, "Classes"), el("dd", {}, classes)],
      ),
      explanation,
      told.in_graph ? this.#neighbours(uri) : null,
    ];
  }

  #neighbours(uri) {
    const place = el("section", {}, el("h3", {}, "Photos that resemble it"));
    ask("neighbours", { uri, limit: 12 }).then((found) => {
      const items = found.map((one) =>
        el(
          "li",
          {},
          el(
            "button",
            { type: "button", class: "small", click: () => this.does.open(one.uri) },
            photo(thumbnail(one.uri, 256), ""),
            named(one.name ?? one.uri),
          ),
        ),
      );
      place.append(items.length ? el("ul", { class: "strip" }, items) : el("p", { class: "quiet" }, "None."));
    }, (error) => place.append(el("p", { class: "quiet" }, error.message)));
    return place;
  }

  #turn(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && !event.target.closest("input, select, textarea")) this.does.step(this.uri, step);
  }
}

/** How sure, by what, which stage moved it. */
function verdict(hit, query) {
  const stages = Object.entries(hit.stage_scores).map(([stage, score]) =>
    el(
      "tr",
      { class: stage === hit.moved_by ? "mover" : "" },
      el("th", { scope: "row" }, stage),
      el("td", {}, score.toFixed(3)),
      el("td", {}, `#${hit.stage_ranks[stage]}`),
    ),
  );
  const moved = hit.moved_by ? `The stage “${hit.moved_by}” moved it most.` : "No stage moved it.";
  return el(
    "section",
    { class: "verdict" },
    el("div", { class: "lead" }, certaintyOf(hit)),
    el("p", {}, framing(hit, query)),
    hit.classes.length ? el("p", {}, `Both look like: ${hit.classes.slice(0, CLASSES).join(", ")}.`) : null,
    hit.note ? el("p", { class: "quiet" }, hit.note) : null,
    el(
      "table",
      {},
      el("caption", {}, moved),
      el("thead", {}, el("tr", {}, ["Stage", "Score", "Rank"].map((words) => el("th", { scope: "col" }, words)))),
      el("tbody", {}, stages),
    ),
  );
}

function framing(hit, query) {
  const what = query?.box ? "the box" : "the query";
  if (isVerified(hit)) return `${hit.inliers} points agree with ${what}: the frame is where they put it.`;
  if (!hit.box) return "Nothing tells where in it the thing may be.";
  const first = hit.matches?.[0];
  const alike = first ? ` (cosine ${first.cosine.toFixed(2)})` : "";
  return `No points were found to agree; dashed is the region most alike${alike}.`;
}

/** Tell the name of a photo whose path the service hides. */
const isHidden = (uri) => /^photo:[0-9a-f]{32}$/.test(uri);
