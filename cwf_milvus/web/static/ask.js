/** Asking: a photo dropped, chosen, pasted, taken or fetched, and the box on it. */

import { address, ask, sendPhoto, sendUrl, thumbnail } from "./api.js";
import { BoxTool } from "./box.js";
import { byId, el, named, photo } from "./dom.js";

const SHOWN = 1024; // pixels of a stored query photo
const KEPT = 8; // pictures of photos that were sent
const OFFERED = 6; // stored photos to begin with

export class Asking {
  /**
   * @param go changes the page's state.
   * @param say told what is going on, or an Error.
   */
  constructor(go, say) {
    Object.assign(this, { go, say });
    this.sent = new Map(); // id of a sent photo -> its width, height and picture
    this.stage = byId("stage");
    this.picture = byId("query-picture");
    byId("exactly").open = matchMedia("(min-width: 48rem)").matches;
    this.tool = new BoxTool(this.stage, byId("numbers"), (box) => go({ box, photo: null }));
    byId("whole").addEventListener("click", () => this.tool.whole());
    addEventListener("keydown", (event) => {
      const is_elsewhere = event.target.closest("dialog, #filter-form, #url-form");
      if (event.key === "Escape" && !is_elsewhere && !byId("search").hidden && this.shown) this.tool.whole();
    });
    for (const id of ["choose", "camera"]) {
      byId(id).addEventListener("change", (event) => {
        this.#take(event.target.files);
        event.target.value = "";
      });
    }
    addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) this.#take(event.clipboardData.files);
    });
    this.#droppable();
    byId("url-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const url = byId("url").value.trim();
      if (url) this.#send((signal) => sendUrl(url, signal), null, "Fetching the photo …");
    });
  }

  /** Offer some of the stored photos to begin with. */
  async offer(searchWith) {
    const { photos } = await ask("photos", { limit: OFFERED }).catch(() => ({ photos: [] }));
    byId("stored-photos").replaceChildren(
      ...photos.map(({ uri, name }) =>
        el(
          "li",
          {},
          el("button", { type: "button", class: "small", click: () => searchWith(uri) }, photo(thumbnail(uri, 256), ""), named(name)),
        ),
      ),
    );
    byId("stored").hidden = document.body.classList.contains("asked") || !photos.length;
  }

  #droppable() {
    const stop = (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      document.body.classList.toggle("dropping", event.type === "dragover");
    };
    for (const type of ["dragover", "dragleave", "drop"]) addEventListener(type, stop);
    addEventListener("drop", (event) => this.#take(event.dataTransfer.files));
  }

  #take(files) {
    const [file] = files;
    if (file) this.#send((signal) => sendPhoto(file, signal), file, "Sending the photo …");
  }

  async #send(sending, file, words) {
    this.sending?.abort();
    const running = (this.sending = new AbortController());
    this.say(words);
    try {
      const { query, width, height } = await sending(running.signal);
      this.#keep(query, { width, height, picture: file && (await this.#own(file, width, height)) });
      if (!running.signal.aborted) {
        this.go({ view: "search", query, uri: null, box: null, like: [], unlike: [], photo: null });
      }
    } catch (error) {
      if (error.name !== "AbortError") this.say(error);
    }
  }

  /** Keep what was sent last; the service has the pictures of those before. */
  #keep(query, photo) {
    this.sent.set(query, photo);
    if (this.sent.size <= KEPT) return;
    const [oldest, { picture }] = this.sent.entries().next().value;
    this.sent.delete(oldest);
    if (picture) URL.revokeObjectURL(picture);
  }

  /** The photo as the browser shows it, where it can and turns it the way that the service does. */
  async #own(file, width, height) {
    const url = URL.createObjectURL(file);
    const probe = new Image();
    probe.src = url;
    try {
      await probe.decode();
      if (probe.naturalWidth === width && probe.naturalHeight === height) return url;
    } catch {
      // another format than browsers know: the service's picture is shown
    }
    URL.revokeObjectURL(url);
    return null;
  }

  /** Show what a state asks with. */
  async show(state) {
    const key = state.query ?? state.uri;
    const is_photo = key !== null && !state.like.length;
    byId("query-photo").hidden = !is_photo;
    const is_asked = is_photo || state.like.length > 0;
    byId("start").hidden = is_asked;
    byId("stored").hidden = is_asked || !byId("stored-photos").childElementCount;
    document.body.classList.toggle("asked", is_asked);
    this.#showSteering(state);
    if (!is_photo) {
      this.shown = null;
      return;
    }
    if (this.shown !== key) {
      this.shown = key;
      this.size = null;
      this.stage.classList.add("waiting");
      const own = this.sent.get(state.query)?.picture;
      this.picture.src = own ?? (state.query ? address("query", { query: key }) : thumbnail(key, SHOWN));
      const name = state.uri ? await this.#nameOf(state.uri) : "";
      if (this.shown !== key) return;
      byId("query-name").replaceChildren(state.uri ? named(name) : "Your photo");
    }
    const sent = this.sent.get(state.query);
    if (sent) this.measure(sent.width, sent.height, state.box);
    else if (this.size) this.measure(...this.size, state.box);
  }

  async #nameOf(uri) {
    try {
      const told = await ask("photo", { uri });
      this.size = [told.width, told.height];
      return told.name;
    } catch (error) {
      this.say(error);
      return uri;
    }
  }

  /** Take the photo's own width and height, and show the box on it. */
  measure(width, height, box) {
    this.size = [width, height];
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.stage.style.width = `min(100%, calc(var(--tallest) * ${width / height}))`;
    this.stage.classList.remove("waiting");
    this.tool.show(width, height, box);
    byId("whole").disabled = this.tool.box === null;
  }

  /** The picture of the query, for the large view; null where it was made of stored photos. */
  pictureOf(state) {
    if (state.like.length) return null;
    if (state.uri) return thumbnail(state.uri, SHOWN);
    return this.sent.get(state.query)?.picture ?? (state.query && address("query", { query: state.query }));
  }

  #showSteering(state) {
    const chips = (name, words) =>
      state[name].map((uri) =>
        el(
          "li",
          {},
          photo(thumbnail(uri, 128), ""),
          named(uri.split("/").pop()),
          el(
            "button",
            {
              type: "button",
              "aria-label": `Leave out ${uri.split("/").pop()} from ${words}`,
              click: () => this.go({ [name]: state[name].filter((other) => other !== uri) }),
            },
            "×",
          ),
        ),
      );
    for (const [name, words] of [["like", "more like these"], ["unlike", "not like these"]]) {
      byId(`${name}-part`).hidden = !state[name].length;
      byId(name).replaceChildren(...chips(name, words));
    }
    byId("unlike-note").hidden = !state.unlike.length || state.like.length > 0;
    byId("back-to-photo").hidden = !state.like.length || !(state.query ?? state.uri);
  }
}
