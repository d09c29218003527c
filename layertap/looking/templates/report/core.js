// The data of the page, its pictures, and what all sections share.

const ARRAYS = { uint8: Uint8Array, int16: Int16Array, int32: Int32Array, float32: Float32Array, float64: Float64Array };
const loaded = new Map();
const awaited = new Map();

window.layertapBlock = (name, value) => awaited.get(name)(value);

/** A block of data: in the page itself, or in a script beside it. */
function block(name) {
  if (!loaded.has(name)) {
    loaded.set(name, new Promise((resolve, reject) => {
      const inside = document.getElementById("block-" + name);
      if (inside) return resolve(JSON.parse(inside.textContent));
      awaited.set(name, resolve);
      const script = document.createElement("script");
      script.src = "data/" + name + ".js";
      script.onerror = () => reject(new Error("data/" + name + ".js is missing"));
      document.head.append(script);
    }));
  }
  return loaded.get(name);
}

/** The typed array of a packed one. */
function unpack(packed) {
  if (!packed.array) {
    const text = atob(packed.data), bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
    packed.array = new ARRAYS[packed.dtype](bytes.buffer);
    packed.data = null;
  }
  return packed.array;
}

let report;
let tap = 0;
const sections = {};

/** A function that runs once; later calls get what the first one gives. */
function once(run) {
  let given;
  return () => given ??= run();
}

const $ = id => document.getElementById(id);
const whole = value => value.toLocaleString("en");

/** A number with as many digits as help. */
function digits(value) {
  if (!Number.isFinite(value)) return "-";
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(+value.toPrecision(4));
}

const share = value => Number.isFinite(value) ? (100 * value).toFixed(1) + "%" : "-";

/** An element with attributes and children; text is text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Text that comes from outside, kept from changing what is around it. */
const isolated = (text, kind = "") => element("bdi", { class: kind || null, title: text.length > 40 ? text.slice(0, 2000) : null }, text);

function say(text) {
  const said = $("said");
  said.textContent = text;
  said.classList.add("now");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => said.classList.remove("now"), 2500);
}

// Ids come in blocks of the same size.
async function namesOf(numbers) {
  const needed = [...new Set(Array.from(numbers, number => Math.floor(number / report.together)))];
  const found = new Map(await Promise.all(needed.map(async at => [at, await block("ids-" + at)])));
  return Array.from(numbers, number => found.get(Math.floor(number / report.together))[number % report.together]);
}

/** What a column says of an image, as text; empty where it says nothing. */
function cell(column, number) {
  const value = unpack(column.values)[number];
  if (column.values.dtype === "float64") return Number.isNaN(value) ? "" : String(value);
  return value < 0 ? "" : column.labels[value];
}

const columnsOf = names => Promise.all(names.map(name => block("column-" + report.columns.findIndex(one => one.name === name))));

// Pictures: 0 there is one, 1 it may differ, 2 none was drawn, and from 3 on the reasons why there is none.
async function picture(number) {
  const pictures = report.pictures, state = unpack(pictures.states)[number];
  if (state >= 2) {
    const why = state === 2 ? "no picture in this report" : pictures.reasons[state - 3];
    return element("div", { class: "picture none", role: "img", "aria-label": why }, why);
  }
  const made = element("div", { class: state === 1 ? "picture doubt" : "picture", title: state === 1 ? "This file may have changed since the run." : null });
  const place = unpack(pictures.places)[number], group = Math.floor(place / pictures.together), within = place % pictures.together;
  if (pictures.sprites) {
    made.style.backgroundImage = "url(sprites/" + group + ".webp)";
    made.style.backgroundPosition = -(within % pictures.across) * pictures.side + "px " + -Math.floor(within / pictures.across) * pictures.side + "px";
    made.setAttribute("role", "img");
  } else {
    made.append(element("img", { src: "data:image/webp;base64," + (await block("pictures-" + group))[within], alt: "", loading: "lazy" }));
  }
  return made;
}

/** Tiles of images: picture, id, and a text for each; a click shows the image on the map. */
async function tiles(numbers, facts = () => []) {
  const names = await namesOf(numbers);
  return Promise.all(Array.from(numbers, async (number, at) => element("li", { class: "tile", "data-image": number },
    element("button", { class: "open", type: "button", title: "Show on the map", onclick: () => sections.map.show(number) }, await picture(number)),
    ...facts(at), isolated(names[at], "id"))));
}

/** Fills a list with the newest of several answers. */
async function fill(target, answer) {
  const turn = target.turn = (target.turn || 0) + 1;
  const children = await answer;
  if (target.turn === turn) target.replaceChildren(...children);
  return target.turn === turn;
}

/** Text as one word of a command line. */
const shell = text => /^[\w./:=@-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\\''") + "'";

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value, selected: String(value) === String(chosen) }, text)));
}

async function copyLines(lines) {
  const text = lines.join("\n");
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", {});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(whole(lines.length) + " ids copied");
}

const quoted = text => /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;

function saveCsv(name, rows) {
  const text = rows.map(row => row.map(value => quoted(String(value))).join(",")).join("\r\n") + "\r\n";
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say(whole(rows.length - 1) + " rows saved as " + name);
}

/** Rows for a CSV: row number, id and metadata of some images. */
async function imageRows(numbers) {
  const names = await namesOf(numbers), columns = await columnsOf(report.columns.map(one => one.name));
  return Array.from(numbers, (number, at) => [rowOf(number), names[at], ...columns.map(column => cell(column, number))]);
}

const rowOf = number => report.rows ? unpack(report.rows)[number] : number;

const imageHeader = () => ["row", "id", ...report.columns.map(one => one.name)];

/** The colours that Bokeh draws with, which are those of the page. */
function inks() {
  const probe = element("span", {}), found = {};
  document.body.append(probe);
  for (const name of ["ink", "quiet", "line", "accent", "ground"]) {
    probe.style.color = "var(--" + name + ")";
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

function paint(figure) {
  const { quiet, line, ground } = inks();
  // Not transparent: Bokeh would leave older ticks below newer ones.
  figure.setv({ background_fill_color: ground, border_fill_color: ground, outline_line_color: line });
  for (const axis of [...figure.below, ...figure.left]) {
    Object.assign(axis, { axis_line_color: line, major_tick_line_color: line, minor_tick_line_color: null, major_label_text_color: quiet, axis_label_text_color: quiet });
  }
  for (const grid of figure.center) if ("grid_line_color" in grid) grid.grid_line_color = null;
}

/** A figure that Python laid out, in its place on the page. */
async function embed(name, place) {
  const figures = await block("figures");
  const views = await Bokeh.embed.embed_item(figures[name], place);
  const [view] = views.roots ?? [...views];
  paint(view.model);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(view.model));
  return view.model;
}
