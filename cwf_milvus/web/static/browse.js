/** Looking around: the photos by folder, date or field, and those that are alike. */

import { ask, thumbnail } from "./api.js";
import { byId, el, named, photo } from "./dom.js";
import { Grid } from "./grid.js";
import { PagedPhotos } from "./paged.js";

const NAMED = 500; // groups in the list; more are found by the filter line

/** A photo that is no hit, as a card. */
function plainCard({ uri, name }, open, words = null) {
  return el(
    "button",
    { type: "button", class: "card", click: () => open(uri) },
    el("span", { class: "picture" }, photo(thumbnail(uri, 512), "")),
    el("span", { class: "caption" }, named(name), words && el("span", { class: "few" }, words)),
  );
}

export class Browsing {
  /**
   * @param go changes the page's state.
   * @param open shows a photo large.
   * @param failed told an Error.
   */
  constructor(go, open, failed) {
    this.failed = failed;
    this.photos = null;
    const source = {
      page: this,
      get length() {
        return this.page.photos?.length ?? 0;
      },
      get: (index) => this.photos?.get(index),
      need: (first, last) => this.photos?.need(first, last),
    };
    this.grid = new Grid(byId("photos"), source, (one) => plainCard(one, open), { caption: 2.2 });
    byId("by").addEventListener("change", (event) => go({ by: event.target.value || null, group: "" }));
    byId("group").addEventListener("change", (event) => go({ group: event.target.value }));
  }

  /** Offer what to browse by. */
  offer(fields) {
    const options = [["", "All photos"], ["folder", "By folder"], ["date", "By date"]];
    const own = fields.filter(({ name }) => name !== "date").map(({ name }) => [name, `By ${name}`]);
    byId("by").replaceChildren(...[...options, ...own].map(([value, words]) => el("option", { value }, words)));
  }

  /** Show what a state asks for. */
  async show({ collection, by, group, filter }) {
    const key = JSON.stringify([collection, by, group, filter]);
    byId("by").value = by ?? "";
    this.#groups(collection, by, group);
    if (this.key === key) {
      this.grid.draw();
      return;
    }
    this.key = key;
    this.photos?.close();
    const parts = [group, filter].filter(Boolean).map((part) => `(${part})`);
    this.photos = new PagedPhotos(
      parts.length > 1 ? parts.join(" and ") : group || filter,
      () => {
        byId("no-photos").hidden = this.photos.length > 0;
        this.grid.draw();
      },
      this.failed,
    );
    this.grid.active = 0;
    this.grid.renew();
  }

  /** Look again: photos were added. */
  forget() {
    this.key = this.grouped = null;
  }

  async #groups(collection, by, group) {
    byId("group-part").hidden = !by;
    const key = JSON.stringify([collection, by]);
    if (by && this.grouped !== key) {
      this.grouped = key;
      try {
        const found = await ask("groups", { by });
        const options = found.slice(0, NAMED).map(({ value, count, filter }) =>
          el("option", { value: filter }, `${value} (${count})`),
        );
        byId("group").replaceChildren(el("option", { value: "" }, `All (${found.length})`), ...options);
        byId("group-name").textContent = by.charAt(0).toUpperCase() + by.slice(1);
      } catch (error) {
        this.failed(error);
      }
    }
    byId("group").value = group;
  }
}

export class Alike {
  /** @param go changes the page's state. @param open shows a photo large. */
  constructor(go, open) {
    this.groups = [];
    this.items = [];
    const source = {
      page: this,
      get length() {
        return this.page.items.length;
      },
      get: (index) => this.items[index],
      need: () => {},
    };
    const card = (item) =>
      plainCard(
        { uri: item.uri, name: item.uri.split("/").pop() },
        open,
        item.of > 1 ? `${item.place} of ${item.of} in group ${item.group}` : null,
      );
    this.grid = new Grid(byId("alike-photos"), source, card, { caption: 3.4 });
    for (const radio of document.getElementsByName("kind")) {
      radio.addEventListener("change", () => go({ kind: radio.value }));
    }
  }

  /** Show the photos with the same bytes, or of the same scene. */
  async show({ collection, kind }, has_graph) {
    for (const radio of document.getElementsByName("kind")) {
      radio.checked = radio.value === kind;
      radio.disabled = radio.value === "scene" && !has_graph;
    }
    byId("no-graph").hidden = has_graph;
    const key = JSON.stringify([collection, kind]);
    if (this.key === key) return;
    this.key = key;
    const words = byId("alike-words");
    words.textContent = "Looking …";
    this.items = [];
    this.grid.renew();
    try {
      const groups = await ask("duplicates", { kind });
      if (this.key !== key) return;
      this.items = groups.flatMap(({ uris }, group) =>
        uris.map((uri, place) => ({ uri, group: group + 1, place: place + 1, of: uris.length })),
      );
      words.textContent = groups.length ? `${groups.length} groups, ${this.items.length} photos` : "There are none.";
      this.grid.renew();
    } catch (error) {
      this.key = null;
      words.textContent = error.message;
    }
  }
}
