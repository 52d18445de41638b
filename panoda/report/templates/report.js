// Puts a comparison over the plain pictures: input below, two label maps wiped against each other.
"use strict";
for (const node of document.querySelectorAll(".with-js")) node.hidden = false;
for (const sample of document.querySelectorAll(".sample")) {
  const tiles = [...sample.querySelectorAll("figure")];
  const input = tiles.find((t) => t.dataset.what === "input");
  const maps = tiles.filter((t) => t !== input);
  if (!input || maps.length < 2) continue;
  const make = (tag, className, parent) => {
    const node = document.createElement(tag);
    node.className = className;
    parent.append(node);
    return node;
  };
  const stage = document.createElement("div");
  stage.className = "stage";
  const canvas = make("div", "canvas", stage);
  const photo = make("img", "", canvas);
  photo.src = input.querySelector("img").src;
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
      layer.src = maps[select.value].querySelector("img").src;
      tag.textContent = maps[select.value].dataset.title;
    };
    select.addEventListener("change", show);
    show();
  };
  const models = maps.findIndex((t) => t.dataset.what !== "truth");
  // One model alone is compared with the truth, where there is one.
  side("left", models === maps.length - 1 ? 0 : models);
  side("right", maps.length - 1);
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
  sample.querySelector(".tiles").before(stage);
}
