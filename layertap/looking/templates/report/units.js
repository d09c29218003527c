// The units: a list that can be sorted, and one of them in detail.

const STEP = 100;

sections.units = (() => {
  let figure, source, found, order = [], listed = 0, unit = -1, current = -1;
  let correlations = null, what = "";

  const begin = once(async () => {
    figure = await embed("histogram", $("histogram-plot"));
    source = figure.renderers[0].data_source;
    $("sort").addEventListener("change", relate);
    $("label").addEventListener("change", sort);
    $("filter").addEventListener("change", sort);
    $("unit").addEventListener("change", () => choose(find(unpack(found.numbers), +$("unit").value)));
    $("more-units").addEventListener("click", list);
  });

  async function draw() {
    await begin();
    if (current === tap) return;
    const wanted = tap, next = await block("units-" + wanted);
    if (wanted !== tap) return;
    [found, current] = [next, wanted];
    const kinds = [["unit", "number"], ["zeros", "share of zeros, least first"], ["-zeros", "share of zeros, most first"],
      ["-kurtosis", "kurtosis"], ["-max", "largest value"], ["-std", "standard deviation"]];
    const relations = found.columns.map((name, at) => ["relation " + at, "relation to " + name]);
    options($("sort"), [...kinds, ...relations], $("sort").value);
    $("unit").max = found.count - 1;
    $("units-says").textContent = said();
    await relate();
    await choose(0 <= unit && unit < unpack(found.numbers).length ? unit : order[0]);
  }

  function said() {
    const numbers = unpack(found.numbers), count = kind => unpack(found[kind]).reduce((sum, one) => sum + one, 0);
    const texts = [whole(found.count) + (found.channels ? " channels; the value of an image is its largest, zeros and moments are over all positions" : " units")];
    if (numbers.length < found.count) texts.push("a seeded sample of " + whole(numbers.length) + " of them is on this page");
    texts.push(whole(count("dead")) + " dead (always 0), " + whole(count("constant")) + " constant (dead ones included)");
    const nonfinite = count("nonfinite");
    if (nonfinite) texts.push(whole(nonfinite) + " values that are not finite are left out");
    return texts.join("; ") + ". Statistics are over all " + whole(report.of) + " images.";
  }

  const relation = () => $("sort").value.startsWith("relation ") ? +$("sort").value.slice(9) : -1;

  /** Take the column that units are sorted by, and offer its labels. */
  async function relate() {
    const at = relation();
    correlations = null;
    $("label-choice").hidden = true;
    if (at >= 0) {
      const wanted = tap, one = await block("relation-" + wanted + "-" + at);
      if (wanted !== tap || at !== relation()) return;
      correlations = one;
      if (one.labels.length) {
        const short = text => text.length > 60 ? text.slice(0, 60) + "..." : text;
        options($("label"), one.labels.map((label, code) => [code, short(label) + " (" + whole(one.counts[code]) + " images)"]), 0);
        $("label-choice").hidden = false;
      }
    }
    sort();
  }

  function related(at) {
    const width = correlations.correlations.shape[1], code = correlations.labels.length ? +$("label").value : 0;
    return unpack(correlations.correlations)[code * width + at];
  }

  function sort() {
    const numbers = unpack(found.numbers), kind = $("sort").value, show = $("filter").value;
    const key = kind.replace("-", ""), sign = kind.startsWith("-") ? -1 : 1;
    let value;
    if (correlations) {
      value = correlations.labels.length ? at => -related(at) : at => -Math.abs(related(at));
    } else {
      value = kind === "unit" ? at => numbers[at] : at => sign * unpack(found[key])[at];
    }
    const dead = unpack(found.dead), constant = unpack(found.constant);
    const kept = { all: () => true, varying: at => !constant[at], dead: at => dead[at], constant: at => constant[at] }[show];
    what = correlations ? (correlations.labels.length ? "selectivity" : "correlation") : "";
    // What cannot be measured comes last.
    const keys = Float64Array.from(numbers, (_, at) => { const one = value(at); return Number.isNaN(one) ? Infinity : one; });
    order = Array.from(numbers, (_, at) => at).filter(kept).sort((one, other) => keys[one] - keys[other] || one - other);
    listed = 0;
    const columns = ["unit", ...(what ? [what] : []), "zeros", "kurtosis", "largest", ""];
    $("unit-list").tHead.replaceChildren(element("tr", {}, ...columns.map((name, at) => element("th", { class: at ? "number" : null }, name))));
    $("unit-list").tBodies[0].replaceChildren();
    list();
    if (order.length) choose(order[0]);
  }

  function list() {
    const numbers = unpack(found.numbers), dead = unpack(found.dead), constant = unpack(found.constant);
    const rows = order.slice(listed, listed + STEP).map(at => {
      const cells = [numbers[at], ...(what ? [digits(related(at))] : []), share(unpack(found.zeros)[at]),
        digits(unpack(found.kurtosis)[at]), digits(unpack(found.max)[at]), dead[at] ? "dead" : constant[at] ? "constant" : ""];
      return element("tr", { "data-unit": numbers[at], "aria-selected": at === unit ? "true" : null, tabindex: 0, onclick: () => choose(at),
        onkeydown: event => event.key === "Enter" && choose(at) },
        ...cells.map((text, place) => element("td", { class: place ? "number" : null }, String(text))));
    });
    listed += rows.length;
    $("unit-list").tBodies[0].append(...rows);
    $("more-units").hidden = listed >= order.length;
    $("more-units").textContent = "Show more (" + whole(order.length - listed) + " left)";
  }

  async function choose(at) {
    if (at === undefined || at < 0) return say("There is no such unit on this page.");
    unit = at;
    const number = unpack(found.numbers)[at], name = found.channels ? "Channel " : "Unit ";
    for (const row of $("unit-list").tBodies[0].rows) row.toggleAttribute("aria-selected", +row.dataset.unit === number);
    $("unit").value = number;
    $("unit-detail").dataset.unit = number;
    $("unit-detail").dataset.tap = report.taps[current].name;
    $("unit-title").replaceChildren(name + number + " of ", isolated(report.taps[current].name), ...(report.taps[current].maps === found.count ? [" ",
      element("button", { type: "button", id: "to-maps", onclick: () => sections.maps.show(number) }, "Where in the image")] : []));
    const facts = [["mean", "mean"], ["std", "std"], ["min", "smallest"], ["max", "largest"], ["kurtosis", "kurtosis"]].map(([key, text]) => [text, digits(unpack(found[key])[at])]);
    facts.push(["zeros", share(unpack(found.zeros)[at])]);
    if (what) facts.push([what, digits(related(at))]);
    if (correlations?.labels.length) facts.push(["images with the label", whole(correlations.counts[+$("label").value])]);
    $("unit-numbers").replaceChildren(...facts.map(([key, text]) => element("div", {}, element("dt", {}, key), element("dd", {}, text))));
    histogram(at);
    await Promise.all([gallery("top", "top", "topValues", at), gallery("least", "least", "leastValues", at)]);
  }

  function histogram(at) {
    const width = found.histogram.shape[1], counts = [...unpack(found.histogram).subarray(at * width, at * width + width)];
    const values = unpack(found.topValues), least = unpack(found.leastValues), step = found.top.shape[1];
    const [low, high] = [least[at * step], values[at * step]], bin = (high > low ? high - low : 1) / width;
    const left = counts.map((_, place) => low + place * bin);
    source.data = { left, right: left.map(edge => edge + bin), top: counts };
    const right = left[width - 1] + bin;
    figure.x_range.setv({ start: left[0], end: right });
    figure.y_range.setv({ start: 0, end: 1.05 * Math.max(1, ...counts) });
    $("histogram-plot").dataset.images = counts.reduce((sum, one) => sum + one, 0);
  }

  async function gallery(place, rows, values, at) {
    const width = found[rows].shape[1], numbers = [], shown = [];
    for (let k = at * width; k < at * width + width; k++) {
      const number = unpack(found[rows])[k];
      if (number < 0) continue;
      numbers.push(number);
      shown.push(unpack(found[values])[k]);
    }
    const name = report.columns[0]?.name, column = name ? (await columnsOf([name]))[0] : null;
    await fill($(place), tiles(numbers, k => [element("span", { class: "value" }, digits(shown[k])),
      ...(column && cell(column, numbers[k]) ? [isolated(cell(column, numbers[k]), "quiet")] : [])]));
  }

  return { draw };
})();
