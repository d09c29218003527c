// Pairs of images that are alike, above a threshold that can be moved.

const PAIRS_STEP = 60;

sections.duplicates = (() => {
  let found, current = -1, begun = false, count = 0, listed = 0, column = null;

  async function draw() {
    if (!begun) {
      begun = true;
      $("threshold").addEventListener("input", sift);
      $("more-pairs").addEventListener("click", list);
      $("copy-pairs").addEventListener("click", async () => copyLines(await namesOf([...new Set(unpack(found.pairs).subarray(0, 2 * count))])));
      $("save-pairs").addEventListener("click", save);
    }
    if (current === tap) return;
    const wanted = tap, next = await block("pairs-" + wanted);
    if (wanted !== tap) return;
    [found, current] = [next, wanted];
    column = report.columns.length ? (await columnsOf([report.columns[0].name]))[0] : null;
    for (const control of document.querySelectorAll("#duplicates .bar input, #duplicates .bar button")) control.disabled = found.least == null;
    if (found.least == null) {
      $("pairs-says").textContent = "More than " + whole(found.most) + " pairs have a cosine of at least " + found.above + ", which are too many to list.";
      return $("pairs").replaceChildren();
    }
    $("threshold").min = found.least;
    $("threshold").value = Math.max(found.least, Math.min(.95, unpack(found.cosines)[0] ?? .95));
    await sift();
  }

  /** The pairs are in descending order, so that those above a threshold are the first ones. */
  async function sift() {
    const least = +$("threshold").value, cosines = unpack(found.cosines);
    count = 0;
    while (count < cosines.length && cosines[count] >= least) count++;
    $("threshold-value").textContent = least.toFixed(4);
    const among = found.among < found.of ? "a seeded sample of " + whole(found.among) + " of " + whole(found.of) + " images (for all: layertap search " + shell(report.path) + " --pairs --tap " + shell(report.taps[tap].name) + ")" : "all " + whole(found.of) + " images";
    $("pairs-says").textContent = whole(count) + (count === 1 ? " pair" : " pairs") + " among " + among + ". Pairs below " + found.least + " are not in this report.";
    $("pairs").dataset.count = count;
    listed = 0;
    $("pairs").replaceChildren();
    await list();
  }

  async function list() {
    const from = listed, to = Math.min(count, listed + PAIRS_STEP), pairs = unpack(found.pairs), cosines = unpack(found.cosines);
    listed = to;
    const turn = list.turn = (list.turn || 0) + 1;
    const made = [];
    for (let at = from; at < to; at++) {
      const two = [pairs[2 * at], pairs[2 * at + 1]];
      const labels = column ? two.map(number => cell(column, number)) : ["", ""];
      const differ = column && column.labels.length && labels[0] !== labels[1];
      made.push(tiles(two, place => labels[place] ? [isolated(labels[place], "quiet")] : []).then(images => element("li", { "data-cosine": cosines[at] },
        element("div", {}, element("span", { class: "value" }, cosines[at].toFixed(5)), ...(differ ? [" ", element("span", { class: "differs" }, isolated(report.columns[0].name), " differs")] : [])),
        element("ul", { class: "two tiles" }, ...images))));
    }
    const items = await Promise.all(made);
    if (turn !== list.turn) return;
    $("pairs").append(...items);
    $("more-pairs").hidden = listed >= count;
    $("more-pairs").textContent = "Show more (" + whole(count - listed) + " left)";
  }

  async function save() {
    const pairs = unpack(found.pairs).subarray(0, 2 * count), cosines = unpack(found.cosines), names = await namesOf(pairs);
    const rows = Array.from({ length: count }, (_, at) => [cosines[at], rowOf(pairs[2 * at]), names[2 * at], rowOf(pairs[2 * at + 1]), names[2 * at + 1]]);
    saveCsv("pairs.csv", [["cosine", "row", "id", "other row", "other id"], ...rows]);
  }

  return { draw };
})();
