// Which section is on the screen, and of which tap.

const SECTIONS = ["run", "map", "units", "maps", "layers", "duplicates"];

async function open(name) {
  for (const one of SECTIONS) {
    $(one).hidden = one !== name;
    const link = document.querySelector('nav a[href="#' + one + '"]');
    if (one === name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  document.querySelector(".tap").hidden = name === "run" || name === "layers";
  scrollTo(0, 0);
  if (sections[name] && report.taps.length) await sections[name].draw();
  document.body.dataset.drawn = name + " " + tap;
}

const asked = () => SECTIONS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "run";

async function start() {
  Bokeh.require?.("core/logging").logger.set_level("error");
  report = await block("report");
  options($("tap"), report.taps.map((one, at) => [at, one.name]), 0);
  $("tap").addEventListener("change", () => {
    tap = +$("tap").value;
    open(asked());
  });
  addEventListener("hashchange", () => open(asked()));
  if (!report.taps.length) for (const name of SECTIONS.slice(1)) $(name).append(element("p", {}, "The output holds no rows that can be shown."));
  await open(asked());
  document.body.dataset.ready = "";
}
