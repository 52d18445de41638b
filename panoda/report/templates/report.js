// Puts a comparison over the plain pictures: input below, two label maps wiped against each other. Panoramas also open
// in the viewer, a page of its own that is made when it is asked for.
"use strict";
for (const node of document.querySelectorAll(".with-js")) node.hidden = false;
const make = (tag, className, parent) => {
  const node = document.createElement(tag);
  node.className = className;
  parent.append(node);
  return node;
};
const source = (tile) => tile.querySelector("img").src;
const samples = [...document.querySelectorAll(".sample")].map((node) => {
  const tiles = [...node.querySelectorAll("figure")];
  const maps = tiles.filter((t) => t.dataset.what !== "input");
  const models = maps.findIndex((t) => t.dataset.what !== "truth");
  // The first model beside the last; one model alone is compared with the truth, where there is one.
  const sides = [models === maps.length - 1 ? 0 : models, maps.length - 1];
  return { node, maps, sides, input: tiles.find((t) => t.dataset.what === "input") };
});
const spheres = samples.filter((sample) => sample.node.dataset.sphere && sample.maps.length);

function lookAround(first) {
  const { page, classes } = JSON.parse(document.getElementById("viewer").textContent);
  const images = spheres.map(({ node, maps, input }) => ({
    name: node.querySelector("h3").textContent,
    ...JSON.parse(node.dataset.sphere),
    photo: source(input),
    maps: maps.map((t) => ({ title: t.dataset.title, label: source(t), confidence: t.dataset.confidence })),
  }));
  const sides = first.maps.length > 1 ? first.sides : null;
  const data = JSON.stringify({ classes, images, sides, start: spheres.indexOf(first) }).replaceAll("<", "\\u003c");
  const dialog = make("dialog", "look", document.body);
  dialog.setAttribute("aria-label", "Look around");
  const close = make("button", "", dialog);
  close.textContent = "Back to the report";
  close.onclick = () => dialog.close();
  const frame = make("iframe", "", dialog);
  Object.assign(frame, { title: "The picture on the sphere", allow: "fullscreen", srcdoc: page.replace("@@data@@", () => data) });
  frame.onload = () => frame.contentWindow.addEventListener("keydown", (event) => {
    if (event.key === "Escape") dialog.close();
  });
  dialog.onclose = () => dialog.remove();
  dialog.showModal();
}

for (const sample of samples) {
  const { node, maps, sides, input } = sample;
  const stage = document.createElement("div");
  stage.className = "stage";
  if (input && maps.length > 1) wipe(stage, input, maps, sides);
  if (spheres.includes(sample)) {
    const button = make("button", "", stage.querySelector(".controls") || make("div", "controls", stage));
    button.textContent = "Look around";
    button.onclick = () => lookAround(sample);
  }
  node.querySelector(".tiles").before(stage);
}

function wipe(stage, input, maps, sides) {
  const canvas = make("div", "canvas", stage);
  const photo = make("img", "", canvas);
  photo.src = source(input);
  photo.alt = "";
  const controls = make("div", "controls", stage);
  const side = (name, first) => {
    const layer = make("img", `layer ${name}`, canvas);
    layer.alt = "";
    const tag = make("span", `name ${name[0]}`, canvas);
    const label = make("label", "", controls);
    label.append(name[0].toUpperCase() + name.slice(1));
    const select = make("select", "", label);
    for (const [i, tile] of maps.entries()) select.append(new Option(tile.dataset.title, i, i === first, i === first));
    const show = () => {
      layer.src = source(maps[select.value]);
      tag.textContent = maps[select.value].dataset.title;
    };
    select.addEventListener("change", show);
    show();
  };
  side("left", sides[0]);
  side("right", sides[1]);
  make("div", "bar", canvas);
  const range = (parent, className, label, value, apply) => {
    const node = make("input", className, parent);
    Object.assign(node, { type: "range", min: 0, max: 100, value });
    node.setAttribute("aria-label", label);
    node.addEventListener("input", () => apply(node.value));
    apply(value);
  };
  range(canvas, "wipe", "Boundary between the left and the right label map", 50, (v) =>
    canvas.style.setProperty("--at", `${v}%`));
  const mix = make("label", "", controls);
  mix.append("Labels over input");
  range(mix, "", "Opacity of the label maps", 65, (v) => canvas.style.setProperty("--mix", v / 100));
}
