// Where in an image a channel responds: its map over what the model saw.

sections.maps = (() => {
  let found, views, current = -1, channel = 0, begun = false;

  const has = () => report.taps[tap].maps > 0;

  async function draw() {
    if (!begun) {
      begun = true;
      $("channel").addEventListener("change", () => choose(+$("channel").value));
      $("channel-before").addEventListener("click", () => choose(channel - 1));
      $("channel-after").addEventListener("click", () => choose(channel + 1));
      $("strength").addEventListener("input", overlay);
      $("smooth").addEventListener("change", overlay);
    }
    for (const control of document.querySelectorAll("#maps .bar input, #maps .bar button")) control.disabled = !has();
    if (!has()) {
      current = -1;
      const why = report.taps[tap].why;
      $("maps-says").replaceChildren(...(why ? ["The model was not run again: ", isolated(why)] : ["The layer of this tap returns no maps with height and width."]));
      return $("overlays").replaceChildren();
    }
    if (current === tap) return;
    const wanted = tap;
    const [maps, seen] = await Promise.all([block("maps-" + wanted), block("views")]);
    if (wanted !== tap) return;
    [found, views, current] = [maps, seen, wanted];
    const [count, kept, high, wide] = found.maps.shape, smaller = high < found.sides[0] || wide < found.sides[1];
    $("channel").max = count - 1;
    $("maps-says").replaceChildren("Layer ", isolated(found.layer), ": " + whole(count) + " channels of " + found.sides.join(" x ") + " positions"
      + (smaller ? ", averaged down to " + high + " x " + wide : "") + ". "
      + (found.why ? "These maps are the stored ones, over the whole picture, which the model may have cropped. " : "The model was run again on " + whole(found.of) + " images, and each is shown as the model saw it. ")
      + "The " + kept + " with the largest values of the channel, of these " + whole(found.of) + "; white is the largest of them, values below 0 are not drawn. ",
      ...(found.why ? ["The model was not run again: ", isolated(found.why)] : []));
    await choose(Math.min(channel, count - 1));
  }

  async function choose(number) {
    const count = found.maps.shape[0];
    if (!(number >= 0 && number < count)) return say("There is no such channel.");
    channel = number;
    $("channel").value = number;
    $("overlays").dataset.channel = number;
    const kept = found.images.shape[1], images = [...unpack(found.images).subarray(number * kept, number * kept + kept)];
    const peaks = unpack(found.peaks), names = await namesOf(images);
    const made = images.map(async (image, at) => {
      const under = views[image] ? element("img", { src: "data:image/webp;base64," + views[image], alt: "" }) : await picture(image);
      const canvas = element("canvas", { "data-at": number * kept + at });
      return element("li", { class: "tile", "data-image": image },
        element("div", { class: "overlay" }, under, canvas),
        element("span", { class: "value" }, digits(peaks[number * kept + at])), isolated(names[at], "id"));
    });
    if (await fill($("overlays"), Promise.all(made))) overlay();
  }

  function overlay() {
    const [, , high, wide] = found.maps.shape, maps = unpack(found.maps), strength = +$("strength").value;
    for (const canvas of document.querySelectorAll("#overlays canvas")) {
      [canvas.width, canvas.height] = [wide, high];
      const pen = canvas.getContext("2d"), image = pen.createImageData(wide, high), start = canvas.dataset.at * high * wide;
      for (let at = 0; at < high * wide; at++) {
        const value = maps[start + at] / 255;
        // From dark red over orange to white, and the stronger the less transparent.
        image.data.set([255 * Math.min(1, .35 + 1.3 * value), 255 * Math.max(0, 1.6 * value - .45), 255 * Math.max(0, 2.5 * value - 1.5), 255 * strength * Math.min(1, 1.6 * value)], 4 * at);
      }
      pen.putImageData(image, 0, 0);
      canvas.parentElement.classList.toggle("smooth", $("smooth").checked);
    }
  }

  async function show(number) {
    location.hash = "maps";
    await open("maps");
    await choose(number);
  }

  return { draw, show, has };
})();
