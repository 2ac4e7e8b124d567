/** The photos of a collection or a group, page by page; the pages far from the screen are let go. */

import { ask } from "./api.js";

const PAGE = 100;
const KEPT = 8; // pages

export class PagedPhotos {
  /** @param filter which photos. @param changed told when there are more. @param failed told an error. */
  constructor(filter, changed, failed) {
    Object.assign(this, { filter, changed, failed });
    this.pages = [{ after: null, photos: null }]; // those known of, in order
    this.count = 0; // photos seen so far
    this.running = new AbortController();
    this.#load(0);
  }

  get length() {
    return this.count;
  }

  get(index) {
    return this.pages[Math.floor(index / PAGE)]?.photos?.[index % PAGE];
  }

  /** Have the pages from one index to another, and the next where the last is near. */
  need(first, last) {
    const [from, to] = [Math.floor(first / PAGE), Math.floor((last - 1 + PAGE / 2) / PAGE)];
    for (let page = from; page <= Math.min(to, this.pages.length - 1); page++) this.#load(page);
    const middle = (from + to) / 2;
    const loaded = this.pages.filter((page) => page.photos);
    if (loaded.length <= KEPT) return;
    const far = (page) => Math.abs(this.pages.indexOf(page) - middle);
    loaded.sort((a, b) => far(b) - far(a));
    for (const page of loaded.slice(0, loaded.length - KEPT)) page.photos = null;
  }

  /** Ask for nothing any more. */
  close() {
    this.running.abort();
  }

  async #load(index) {
    const page = this.pages[index];
    if (page.photos || page.asked) return;
    page.asked = true;
    try {
      const asked = { filter: this.filter, limit: PAGE, after: page.after };
      const answer = await ask("photos", asked, this.running.signal);
      page.photos = answer.photos;
      this.count = Math.max(this.count, index * PAGE + answer.photos.length);
      if (answer.after && index === this.pages.length - 1) this.pages.push({ after: answer.after, photos: null });
      this.changed();
    } catch (error) {
      if (error.name !== "AbortError") this.failed(error);
    } finally {
      page.asked = false;
    }
  }
}
