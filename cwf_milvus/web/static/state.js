/** What the page shows stands in its address, so that back, reload and sharing work. */

const EMPTY = {
  collection: null,
  view: "search", // or browse, alike, about
  query: null, // a photo that was sent
  uri: null, // or a stored one
  box: null, // [left, top, right, bottom] in the photo's own pixels
  like: [],
  unlike: [],
  filter: "",
  certainty: 0, // in hundredths
  by: null, // browsing: folder, date, or a field
  group: "", // browsing: the filter of one group
  kind: "bytes", // or scene, of photos alike
  photo: null, // the one that is shown large
};

/** The state that an address stands for; what it does not say, or says wrongly, is as at first. */
export function read(search = location.search) {
  const given = new URLSearchParams(search);
  const state = structuredClone(EMPTY);
  for (const name of Object.keys(EMPTY)) {
    if (!given.has(name)) continue;
    if (name === "like" || name === "unlike") state[name] = given.getAll(name);
    else if (name === "box") state.box = boxOf(given.get("box"));
    else if (name === "certainty") state.certainty = Math.min(100, Math.max(0, Math.round(Number(given.get(name))) || 0));
    else state[name] = given.get(name);
  }
  if (!["search", "browse", "alike", "about"].includes(state.view)) state.view = "search";
  if (state.kind !== "scene") state.kind = "bytes";
  return state;
}

/** The address of a state: only what differs from the first. */
export function addressOf(state) {
  const told = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name === "box" && value) told.set(name, value.join(","));
    else if (Array.isArray(value)) for (const one of value) told.append(name, one);
    else if (value !== EMPTY[name] && value !== null) told.set(name, value);
  }
  return `/${told.size ? `?${told}` : ""}`;
}

/** What of a state a search depends on, as text that is equal when they are. */
export function searchOf({ collection, query, uri, box, like, unlike, filter, certainty }) {
  return JSON.stringify([collection, query, uri, box, like, unlike, filter, certainty]);
}

/** The part of the state that asks nothing. */
export const NOTHING_ASKED = { query: null, uri: null, box: null, like: [], unlike: [], photo: null };

function boxOf(text) {
  const sides = text.split(",").map(Number);
  const [left, top, right, bottom] = sides;
  const is_box = sides.length === 4 && sides.every(Number.isFinite) && left < right && top < bottom;
  return is_box ? sides : null;
}
