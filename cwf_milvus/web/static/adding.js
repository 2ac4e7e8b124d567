/** Photos put into the collection, where the service lets it. */

import { add } from "./api.js";
import { byId, el, named } from "./dom.js";

const AT_ONCE = 50; // photos in a request
const TOLD = 200; // outcomes that stay in the list, the last ones

/** @param added told when there are new photos. */
export function adding(added) {
  byId("add").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    if (files.length) await addAll(files).finally(added);
  });
}

async function addAll(files) {
  const [bar, words, list] = ["add-progress", "add-words", "add-list"].map(byId);
  byId("add-part").hidden = false;
  bar.max = files.length;
  bar.value = 0;
  list.replaceChildren();
  const counts = {};
  try {
    for (let start = 0; start < files.length; start += AT_ONCE) {
      for await (const told of add(files.slice(start, start + AT_ONCE))) {
        if (!told.name) continue; // the counts at the end, which are counted here over all requests
        counts[told.outcome] = (counts[told.outcome] ?? 0) + 1;
        bar.value = start + told.done;
        words.textContent = `${start + told.done} of ${files.length}: ${inWords(counts)}`;
        if (told.outcome !== "added") list.append(el("li", {}, named(told.name), `: ${told.reason ?? told.outcome}`));
        if (list.childElementCount > TOLD) list.firstElementChild.remove();
      }
    }
  } catch (error) {
    words.textContent = error.message;
  }
}

const inWords = (counts) => Object.entries(counts).map(([outcome, count]) => `${count} ${outcome}`).join(", ");
