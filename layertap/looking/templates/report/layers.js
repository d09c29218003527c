// How alike the taps see the same images, as a matrix.

sections.layers = (() => {
  let begun = false;

  async function draw() {
    const found = await block("layers");
    if (!begun) $("measure").addEventListener("change", () => write(found));
    begun = true;
    if (found.why) {
      $("layers-says").replaceChildren(isolated(found.why));
      $("measure").disabled = true;
      return;
    }
    const of = found.images < found.of ? "a seeded sample of " + whole(found.images) + " of " + whole(found.of) + " images" : "all " + whole(found.images) + " images";
    $("layers-says").textContent = "Computed on " + of + (found.leftOut ? "; " + whole(found.leftOut) + " with values that are not finite are left out" : "")
      + ". 1: the same up to rotation and scale (CKA), or the same order of dissimilarities (RSA). About 0: nothing in common.";
    write(found);
  }

  function write(found) {
    const matrix = found[$("measure").value], chosen = report.taps[tap].name;
    const head = element("tr", {}, element("td", {}), ...found.names.map(name => element("th", { scope: "col" }, isolated(name))));
    const rows = matrix.map((row, at) => element("tr", {},
      element("th", { scope: "row", "aria-current": found.names[at] === chosen ? "true" : null }, isolated(found.names[at])),
      ...row.map(value => {
        const strength = value == null ? 0 : Math.max(0, Math.min(1, value));
        const cell = element("td", { "data-value": value }, value == null ? "-" : value.toFixed(3));
        cell.style.background = "color-mix(in srgb, var(--accent) " + Math.round(70 * strength) + "%, var(--raised))";
        return cell;
      })));
    $("matrix").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
    $("matrix").dataset.measure = $("measure").value;
  }

  return { draw };
})();
