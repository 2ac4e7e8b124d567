/** The numbers of a collection, as `cwf-milvus info` tells them. */

import { ask } from "./api.js";
import { byId, el, shown } from "./dom.js";

const WORDS = {
  photos: "Photos",
  photos_in_graph: "Photos in the graph",
  bytes_per_photo: "Bytes a photo",
  dim: "Dimensions of a descriptor",
  n_classes: "Class vectors a photo",
  n_regions: "Region vectors a photo",
  n_keypoints: "Keypoints a photo, at most",
  precision: "Precision of vectors",
  index: "Index",
  metric: "Metric",
  milvus: "Milvus",
  uri: "Address",
  whitening: "Whitening",
  certainty: "Certainty fitted on",
  threshold: "Found from a certainty of",
  stages: "Stages of a search",
  fields: "Fields",
  fingerprint: "Fingerprint of the encoder",
};

/** Show them. */
export async function showNumbers() {
  const place = byId("numbers-of-info");
  try {
    const told = await ask("info");
    const { settings, fields, stages, ...plain } = told;
    const values = { ...plain, stages: ["descriptor", ...stages].join(", then "), fields: fields.map((field) => field.name).join(", ") || "none" };
    const rows = Object.keys(WORDS).filter((name) => values[name] !== null && values[name] !== undefined);
    place.replaceChildren(...rows.flatMap((name) => row(WORDS[name], values[name])));
    byId("settings-of-info").replaceChildren(
      ...Object.entries(settings).flatMap(([name, value]) => row(name, value ?? "none")),
    );
  } catch (error) {
    place.replaceChildren(...row("Failed", error.message));
  }
}

function row(name, value) {
  const words = typeof value === "number" && value >= 1000 ? value.toLocaleString("en-GB") : shown(value);
  return [el("dt", {}, name), el("dd", { dir: "auto" }, words)];
}
