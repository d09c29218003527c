// The map: points in two dimensions, their colours, and what is chosen among them.

const PALETTE = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#77aadd", "#44bb99", "#bbcc33", "#997700", "#dd88bb"];
const GREY = "#9a9a9a";
const MOST_LISTED = 120;

sections.map = (() => {
  let figure, source, renderer, mapper, points, near;
  let chosen = [], kind = "";

  const begin = once(async () => {
    figure = await embed("map", $("map-plot"));
    renderer = figure.renderers[0];
    source = renderer.data_source;
    mapper = renderer.glyph.fill_color.transform;
    source.inspect.connect(() => hover(source.inspected.indices[0]));
    figure.on_event("selectiongeometry", event => event.final && select(event.geometry));
    figure.on_event("reset", () => choose([], ""));
    $("colour").addEventListener("change", colour);
    $("copy").addEventListener("click", async () => copyLines(await namesOf(chosen)));
    $("save").addEventListener("click", async () => saveCsv("chosen.csv", [imageHeader(), ...await imageRows(chosen)]));
    $("clear").addEventListener("click", () => choose([], ""));
    options($("colour"), [["", "nothing"], ...report.columns.map(one => [one.name, one.name])], report.columns[0]?.name);
  });

  async function draw() {
    await begin();
    const current = tap;
    const [found, neighbours] = await Promise.all([block("map-" + current), block("near-" + current)]);
    if (current !== tap) return;
    [points, near] = [found, neighbours];
    place();
    await colour();
    await choose(chosen.filter(number => number >= 0), kind);
  }

  function place() {
    const x = unpack(points.x), y = unpack(points.y);
    let [left, right, low, high, there] = [Infinity, -Infinity, Infinity, -Infinity, 0];
    for (let at = 0; at < x.length; at++) {
      if (Number.isNaN(x[at])) continue;
      there++;
      left = Math.min(left, x[at]); right = Math.max(right, x[at]);
      low = Math.min(low, y[at]); high = Math.max(high, y[at]);
    }
    if (!there) [left, right, low, high] = [0, 1, 0, 1];
    const across = (right - left || 1) * .04, down = (high - low || 1) * .04;
    figure.x_range.setv({ start: left - across, end: right + across, reset_start: left - across, reset_end: right + across });
    figure.y_range.setv({ start: low - down, end: high + down, reset_start: low - down, reset_end: high + down });
    const size = there > 200000 ? 2 : there > 20000 ? 3.5 : there > 2000 ? 6 : there > 200 ? 8 : 11;
    for (const glyph of [renderer.glyph, renderer.selection_glyph, renderer.nonselection_glyph]) glyph.size = size;
    $("map-plot").dataset.points = there;
    $("map-plot").dataset.tap = report.taps[tap].name;
    const shares = points.shares.map(value => value == null ? "" : " (" + share(value) + " of the variance)");
    const names = points.method === "pca" ? ["component 1" + shares[0], "component 2" + shares[1]] : ["", ""];
    [figure.below[0].axis_label, figure.left[0].axis_label] = names;
    $("map-says").textContent = said(there, x.length);
  }

  function said(there, all) {
    const texts = [];
    const of = there < report.of ? whole(there) + " of " + whole(report.of) + " images" : whole(there) + " images";
    texts.push(of + (there < all && points.method === "pca" ? "; the others hold values that are not finite" : ""));
    if (points.method === "pca") {
      texts.push("principal components" + (points.fitted < report.of ? " of a seeded sample of " + whole(points.fitted) + " images" : ""));
    } else {
      texts.push("UMAP (" + Object.entries(points.parameters).map(([key, value]) => key + " " + value).join(", ") + ")");
    }
    return texts.join(", ") + ".";
  }

  async function colour() {
    const name = $("colour").value, x = unpack(points.x), y = unpack(points.y), c = new Float32Array(x.length);
    $("legend").replaceChildren();
    $("odd").hidden = true;
    if (!name) {
      mapper.setv({ palette: [inks().accent], low: -1, high: 1 });
    } else {
      const [column] = await columnsOf([name]), values = unpack(column.values);
      if (column.values.dtype === "float64") {
        const sorted = Float64Array.from(values.filter(Number.isFinite)).sort();
        c.set(values);
        const [low, high] = [sorted[0] ?? 0, sorted[sorted.length - 1] ?? 1];
        mapper.setv({ palette: report.scale, low, high: high > low ? high : low + 1, nan_color: GREY });
        range(low, high);
      } else {
        for (let at = 0; at < c.length; at++) c[at] = values[at] < 0 ? NaN : values[at] % PALETTE.length;
        mapper.setv({ palette: PALETTE, low: -.5, high: PALETTE.length - .5, nan_color: GREY });
        legend(column);
        if (column.labels.length > 1) await odd(column);
      }
    }
    // Once for everything: a million points take seconds each time.
    source.data = { x, y, c };
    $("map-plot").dataset.colour = name;
  }

  /** The labels with their colours; a click chooses the images of one. */
  function legend(column) {
    const most = 40, order = column.labels.map((_, code) => code);
    if (order.length > most) order.sort((one, other) => column.counts[other] - column.counts[one]);
    const chips = order.slice(0, most).map(code => {
      const mark = element("span", { class: "mark" });
      mark.style.background = PALETTE[code % PALETTE.length];
      return element("button", { type: "button", class: "chip", "data-label": code, onclick: () => only(column, code) },
        mark, isolated(column.labels[code].slice(0, 200)), element("span", { class: "count" }, whole(column.counts[code])));
    });
    const rest = order.length - chips.length;
    $("legend").replaceChildren(...chips, ...(rest > 0 ? [element("span", { class: "small" }, "and " + whole(rest) + " other labels")] : []));
  }

  function range(low, high) {
    const bar = element("span", { class: "scale" });
    bar.style.background = "linear-gradient(to right," + report.scale.filter((_, at) => at % 17 === 0).join(",") + ")";
    $("legend").replaceChildren(element("span", {}, digits(low)), bar, element("span", {}, digits(high)));
  }

  async function only(column, code) {
    const values = unpack(column.values), found = [];
    for (let at = 0; at < values.length; at++) if (values[at] === code) found.push(at);
    await choose(found, "label");
  }

  /** The images whose nearest neighbours have other labels: the first place to look for wrong ones. */
  async function odd(column) {
    const rows = unpack(near.rows), all = unpack(near.near), values = unpack(column.values), width = near.near.shape[1];
    const found = [];
    for (let at = 0; at < rows.length; at++) {
      const own = values[rows[at]];
      let [same, known] = [0, 0];
      for (let k = at * width; k < at * width + width; k++) {
        if (all[k] < 0 || values[all[k]] < 0) continue;
        known++;
        same += values[all[k]] === own;
      }
      // No image can have more neighbours of its label than there are.
      const possible = own < 0 ? 0 : Math.min(known, column.counts[own] - 1);
      if (2 * same < possible) found.push([rows[at], same, possible]);
    }
    found.sort((one, other) => one[1] / one[2] - other[1] / other[2]);
    const listed = found.slice(0, 60);
    $("odd").hidden = false;
    $("odd").dataset.count = found.length;
    $("odd-title").textContent = found.length ? whole(found.length) + " unlike their neighbours" : "None unlike its neighbours";
    $("odd-says").replaceChildren("Images most of whose nearest neighbours have another ", isolated($("colour").value),
      listed.length < found.length ? ": the first " + listed.length + "." : ".");
    await fill($("odd-list"), tiles(listed.map(one => one[0]), place => [
      element("span", { class: "value" }, listed[place][1] + " of " + listed[place][2] + " alike"),
      isolated(cell(column, listed[place][0]), "quiet")]));
  }

  async function hover(number) {
    if (number === undefined) return;
    const turn = hover.turn = (hover.turn || 0) + 1;
    const [[name], image, columns] = await Promise.all([namesOf([number]), picture(number), columnsOf(report.columns.map(one => one.name))]);
    if (turn !== hover.turn) return;
    const facts = report.columns.map((one, at) => [one.name, cell(columns[at], number)]).filter(([, text]) => text);
    $("hovered").dataset.image = number;
    $("hovered").replaceChildren(image, element("div", { class: "says" }, isolated(name, "id"),
      ...facts.map(([key, text]) => element("div", { class: "small" }, isolated(key), ": ", isolated(text.slice(0, 2000))))));
  }

  function select(geometry) {
    const found = source.selected.indices;
    if (geometry.type === "point") {
      if (!found.length) return choose([], "");
      const x = unpack(points.x), y = unpack(points.y), [px, py] = [geometry.x, geometry.y];
      const wide = figure.x_range.end - figure.x_range.start, high = figure.y_range.end - figure.y_range.start;
      const away = at => ((x[at] - px) / wide) ** 2 + ((y[at] - py) / high) ** 2;
      return neighboursOf([...found].reduce((best, at) => away(at) < away(best) ? at : best));
    }
    return choose([...found], "selected");
  }

  async function neighboursOf(number) {
    const rows = unpack(near.rows), all = unpack(near.near), cosines = unpack(near.cosines);
    const width = near.near.shape[1], at = find(rows, number);
    hover(number);
    if (at < 0) return guess(number);
    const found = [...all.subarray(at * width, at * width + width)].filter(one => one >= 0);
    await choose([number, ...found], "neighbours", place => place ? cosines[at * width + place - 1] : null);
  }

  /** Neighbours of an image for which none were computed, by the directions of all images in a few components. */
  async function guess(number) {
    const found = await block("codes-" + tap), bytes = unpack(found.codes), wide = found.codes.shape[1];
    const codes = new Int8Array(bytes.buffer), own = codes.subarray(number * wide, number * wide + wide);
    const best = [];
    for (let at = 0; at * wide < codes.length; at++) {
      let alike = 0;
      for (let k = 0; k < wide; k++) alike += own[k] * codes[at * wide + k];
      if (at === number || (best.length === 10 && alike <= best[9][0])) continue;
      best.push([alike, at]);
      best.sort((one, other) => other[0] - one[0]);
      best.length = Math.min(best.length, 10);
    }
    const [name] = await namesOf([number]), good = found.recall >= .5;
    await choose(good ? [number, ...best.map(([, at]) => at)] : [number], good ? "guessed" : "one");
    const how = good ? "Found by " + wide + " principal components, which finds " + share(found.recall) + " of the true ten nearest (measured on " + whole(found.measured) + " images). The exact ones: "
      : "Neighbours were computed for " + whole(unpack(near.rows).length) + " images, a seeded sample. Those of this one: ";
    $("chosen-says").replaceChildren(how, element("code", {}, isolated("layertap search " + shell(report.path) + " " + shell(name) + " --tap " + shell(report.taps[tap].name))));
  }

  async function choose(numbers, what, cosine = null) {
    [chosen, kind] = [numbers, what];
    const listed = numbers.slice(0, MOST_LISTED);
    if (numbers.length || source.selected.indices.length) source.selected.indices = numbers;
    $("chosen-bar").hidden = !numbers.length;
    $("chosen").dataset.kind = what;
    const titles = { neighbours: "Nearest neighbours", guessed: "Nearest neighbours, approximately", one: "Chosen image" };
    $("chosen-title").textContent = titles[what] || whole(numbers.length) + " images";
    $("chosen-says").textContent = listed.length < numbers.length ? "The first " + MOST_LISTED + " are listed; copying and saving take all." : "";
    const column = $("colour").value ? (await columnsOf([$("colour").value]))[0] : null;
    await fill($("chosen"), tiles(listed, at => [
      ...(cosine ? [element("span", { class: "value" }, at ? "cosine " + cosine(at).toFixed(4) : "this image")] : []),
      ...(column && cell(column, listed[at]) ? [isolated(cell(column, listed[at]), "quiet")] : []),
    ]));
  }

  async function show(number) {
    location.hash = "map";
    await open("map");
    await neighboursOf(number);
  }

  return { draw, show };
})();

/** The place of a value in a sorted array, -1 for none. */
function find(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return sorted[low] === value ? low : -1;
}
