/* Photographs with maps of labels on the sphere, compared across a line. Each side is a pannellum of its own, and its
   texture is a canvas: the photograph with one of the maps over it. The left side lies over the right one, is cut at
   the line, takes no input and follows where the right one looks. */
"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const PHOTO = -1; // in place of the number of a map
  const state = { image: 0, maps: data.sides || null, show: "split", split: 50, layer: "labels", opacity: 0.55,
    off: new Set(), picked: null, ready: false };
  window.panoda = state;
  const sides = ["left", "right"].map((name) => ({ name, texture: canvas(1, 1), over: canvas(1, 1), viewer: null }));
  let photo, maps; // of the image that is open

  function canvas(width, height) {
    return Object.assign(document.createElement("canvas"), { width, height });
  }
  async function picture(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  }
  /* The bytes of a PNG with one byte a pixel and unfiltered rows. A canvas would not do: some browsers add noise to what
     is read from it. */
  async function values(source) {
    const file = Uint8Array.from(atob(source.split(",")[1]), (c) => c.charCodeAt(0)), view = new DataView(file.buffer);
    const [width, height] = [view.getUint32(16), view.getUint32(20)], parts = [];
    for (let at = 8; at < file.length; at += 12 + view.getUint32(at)) {
      if (String.fromCharCode(...file.subarray(at + 4, at + 8)) === "IDAT") parts.push(file.subarray(at + 8, at + 8 + view.getUint32(at)));
    }
    const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
    const rows = new Uint8Array(await new Response(stream).arrayBuffer()), found = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) found.set(rows.subarray(y * (width + 1) + 1, (y + 1) * (width + 1)), y * width);
    return { width, height, at: (x, y) => found[Math.floor(y * height) * width + Math.floor(x * width)], values: found };
  }
  async function readMap(about) {
    const [label, confidence] = await Promise.all([values(about.label), about.confidence && values(about.confidence)]);
    const counts = new Array(data.classes.length).fill(0);
    for (const id of label.values) if (id < counts.length) counts[id]++;
    const all = counts.reduce((sum, count) => sum + count, 0) || 1;
    return { title: about.title, label, confidence, shares: counts.map((count) => count / all) };
  }

  /* Red over yellow to green, as in the scale of the panel. */
  function heat(value) {
    const t = value / 255, [a, b, u] = t < 0.5 ? [[215, 25, 28], [255, 211, 77], 2 * t] : [[255, 211, 77], [26, 150, 65], 2 * t - 1];
    return a.map((x, i) => x + (b[i] - x) * u);
  }
  const pack = (rgb) => (255 << 24) | (Math.round(rgb[2]) << 16) | (Math.round(rgb[1]) << 8) | Math.round(rgb[0]);
  const heats = Array.from({ length: 256 }, (_, value) => pack(heat(value)));

  /* The map of a side; where that is the photograph alone, a click still names what the other side shows. */
  const mapOf = (k) => maps[state.maps[k]];
  const titleOf = (k) => (mapOf(k) ? mapOf(k).title : "Photo");

  function paintMap(k) {
    const map = mapOf(k), { over } = sides[k];
    if (!map) return;
    const { width, height, values: ids } = map.label, sure = state.layer === "confidence" && map.confidence;
    [over.width, over.height] = [width, height];
    const pixels = new ImageData(width, height), packed = new Uint32Array(pixels.data.buffer);
    const colours = data.classes.map((c, id) => (state.off.has(id) ? 0 : pack(c.colour)));
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const colour = colours[ids[i]] || 0; // ids beyond the classes are no labels
        packed[i] = colour && sure ? heats[sure.at(x / width, y / height)] : colour;
      }
    }
    over.getContext("2d").putImageData(pixels, 0, 0);
  }
  function compose(k) {
    const { texture, over } = sides[k], context = texture.getContext("2d");
    context.globalAlpha = 1;
    context.drawImage(photo, 0, 0);
    if (mapOf(k)) {
      context.globalAlpha = state.opacity;
      context.imageSmoothingEnabled = false;
      context.drawImage(over, 0, 0, texture.width, texture.height);
    }
    redraw(sides[k]);
  }
  /* Asked to update, pannellum draws, and uploads the canvas whenever it draws: `uploadOnce` lets it do so after a change
     alone, which keeps large pictures smooth while one looks around. */
  function redraw(side) {
    side.changed = true;
    if (!state.ready) return;
    side.viewer.setUpdate(true);
    requestAnimationFrame(() => requestAnimationFrame(() => side.viewer.setUpdate(false)));
  }
  function uploadOnce(side) {
    const gl = side.viewer.getRenderer().getCanvas().getContext("experimental-webgl"), upload = gl.texImage2D.bind(gl);
    gl.texImage2D = (...values) => {
      if (side.changed) upload(...values);
      side.changed = false;
    };
  }
  function paint() {
    for (const k of [0, 1]) { paintMap(k); compose(k); }
  }

  let opening = 0;
  async function open(index) {
    const turn = ++opening, number = (index + data.images.length) % data.images.length, about = data.images[number];
    const found = await Promise.all([picture(about.photo), ...about.maps.map(readMap)]);
    if (turn !== opening) return; // another image was asked for meanwhile
    Object.assign(state, { image: number, ready: false, picked: null });
    [photo, ...maps] = found;
    state.maps = (state.maps || (maps.length > 1 ? [0, maps.length - 1] : [PHOTO, 0])).map((map) => Math.min(map, maps.length - 1));
    for (const { texture } of sides) [texture.width, texture.height] = [photo.naturalWidth, photo.naturalHeight];
    paint();
    $("title").textContent = about.name;
    $("taken").textContent = about.takenFor || "";
    $("picked").textContent = "Click somewhere to read its class.";
    [...$("strip").children].forEach((button, k) => button.setAttribute("aria-pressed", k === number));
    nameSides();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const upwards = (2 * Math.atan($("stage").clientWidth / $("stage").clientHeight) * 180) / Math.PI; // 90 degrees high
    for (const [k, side] of sides.entries()) {
      if (side.viewer) side.viewer.destroy();
      $(side.name).replaceChildren();
      const follows = k === 0;
      side.viewer = pannellum.viewer($(side.name), {
        type: "equirectangular", panorama: side.texture, dynamic: true, dynamicUpdate: true, autoLoad: true,
        haov: about.fov, vaov: about.latTop - about.latBottom, vOffset: (about.latTop + about.latBottom) / 2,
        hfov: Math.min(100, about.fov, upwards), minHfov: 10, maxHfov: 120,
        pitch: about.fov < 180 ? (about.latTop + about.latBottom) / 2 : 0, minPitch: -90, maxPitch: 90,
        backgroundColor: [0.12, 0.13, 0.14], compass: false, showControls: false, friction: still ? 1 : 0.15,
        draggable: !follows, mouseZoom: !follows, disableKeyboardCtrl: follows,
      });
    }
    $("left").tabIndex = -1;
    state.viewers = sides.map(({ viewer }) => viewer);
    await Promise.all(state.viewers.map((viewer) => viewer.isLoaded() || new Promise((done) => viewer.on("load", done))));
    if (turn !== opening) return;
    state.ready = true;
    sides.forEach(uploadOnce);
    sides.forEach(redraw);
  }
  (function follow() {
    if (state.ready && state.show !== "right") {
      const [left, right] = state.viewers;
      const pose = [right.getPitch(), right.getYaw(), right.getHfov()];
      if (pose.join() !== [left.getPitch(), left.getYaw(), left.getHfov()].join()) left.lookAt(...pose, false);
    }
    requestAnimationFrame(follow);
  })();

  function nameSides() {
    const [left, , right] = $("show").children, names = $("line").querySelectorAll("span");
    [left, right].forEach((button, k) => { button.textContent = names[k].textContent = titleOf(k); });
    $("choices").hidden = maps.length < 2;
    [...$("choices").querySelectorAll("select")].forEach((select, k) => {
      const options = [[PHOTO, "Photo"], ...maps.map((map, number) => [number, map.title])];
      select.replaceChildren(...options.map(([number, title]) => new Option(title, number, false, number === state.maps[k])));
      select.onchange = () => { state.maps[k] = Number(select.value); paint(); nameSides(); };
    });
    $("layer").hidden = !maps.some((map) => map.confidence);
    listClasses();
  }
  function listClasses() {
    const shown = [...new Set([mapOf(0), mapOf(1)])].filter(Boolean);
    $("classes").replaceChildren(...data.classes.map((c, id) => {
      const item = document.createElement("li"), row = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !state.off.has(id);
      box.onchange = () => { state.off[box.checked ? "delete" : "add"](id); paint(); };
      const colour = document.createElement("i"), name = document.createElement("span"), share = document.createElement("small");
      colour.style.background = `rgb(${c.colour})`;
      name.textContent = c.name;
      share.textContent = shown.map((map) => `${(100 * map.shares[id]).toFixed(1)} %`).join(" \u2192 ");
      row.append(box, colour, name, share);
      item.append(row);
      item.hidden = maps.every((map) => map.shares[id] === 0);
      return item;
    }));
  }
  function press(group, name, value) {
    for (const button of $(group).querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset[name] === value);
  }
  function setShow(show) {
    state.show = show;
    press("show", "show", show);
    $("stage").style.setProperty("--at", `${show === "left" ? 100 : state.split}%`);
    document.querySelector(".cut").hidden = show === "right";
    $("line").hidden = show !== "split";
  }
  /* Split once more: a line that was left under the panel comes back. */
  const choose = (show) => (show === "split" && state.show === "split" ? setSplit(50) : setShow(show));
  function setSplit(percent) {
    state.split = Math.min(98, Math.max(2, percent));
    $("line").setAttribute("aria-valuenow", Math.round(state.split));
    setShow("split");
  }
  function setLayer(layer) {
    state.layer = layer;
    press("layer", "layer", layer);
    $("scale").hidden = layer !== "confidence";
    if (photo) paint();
  }
  function setOpacity(percent) {
    state.opacity = percent / 100;
    $("opacity").value = percent;
    compose(0); compose(1);
  }
  function fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen();
  }

  /* What a map says of a direction (degrees); the middle of the image is at yaw 0. */
  function at(pitch, yaw, map) {
    const about = data.images[state.image], { width, height } = map.label;
    const x = yaw / about.fov + 0.5, y = (about.latTop - pitch) / (about.latTop - about.latBottom);
    if (x < 0 || y < 0 || y >= 1 || (x >= 1 && about.fov < 359.5)) return null;
    const column = Math.min(x, 1 - 0.5 / width), id = map.label.at(column, y);
    if (id >= data.classes.length) return null;
    return { title: map.title, name: data.classes[id].name, id, confidence: map.confidence && map.confidence.at(column, y) / 255,
      x: Math.floor(column * width), y: Math.floor(y * height), lon: yaw + (about.centreLon || 0), lat: pitch };
  }
  state.at = (pitch, yaw, number = maps.length - 1) => at(pitch, yaw, maps[number]);

  function pick(event) {
    const [pitch, yaw] = state.viewers[1].mouseEventToCoords(event), box = $("stage").getBoundingClientRect();
    const clicked = state.show === "split" ? Number((100 * (event.clientX - box.left)) / box.width >= state.split) : Number(state.show === "right");
    const order = [mapOf(clicked), mapOf(1 - clicked)].filter(Boolean), found = [...new Set(order)].map((map) => at(pitch, yaw, map)).filter(Boolean);
    state.picked = found[0] || null;
    const text = ({ title, name, confidence }) =>
      `${maps.length > 1 ? `${title}: ` : ""}${name}${confidence ? `, ${(100 * confidence).toFixed(0)} %` : ""}`;
    const lines = found.map((one, k) => Object.assign(document.createElement(k ? "small" : "b"), { textContent: text(one) }));
    const where = document.createElement("small");
    if (found[0]) where.textContent = `${found[0].lon.toFixed(0)}\u00b0, ${found[0].lat.toFixed(0)}\u00b0`;
    $("picked").replaceChildren(...(lines.length ? [...lines, where] : ["nothing here"]));
  }

  let pressed = null;
  $("right").addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; }, true);
  $("right").addEventListener("pointerup", (event) => {
    if (pressed && state.ready && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 6) pick(event);
    pressed = null;
  }, true);
  const moveLine = (event) => {
    const box = $("stage").getBoundingClientRect();
    if ($("line").hasPointerCapture(event.pointerId)) setSplit((100 * (event.clientX - box.left)) / box.width);
  };
  $("line").addEventListener("pointerdown", (event) => $("line").setPointerCapture(event.pointerId));
  $("line").addEventListener("pointermove", moveLine);
  $("line").addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 : 2;
    const to = { ArrowLeft: state.split - step, ArrowRight: state.split + step, Home: 0, End: 100 }[event.key];
    if (to !== undefined) { setSplit(to); event.preventDefault(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    if (["BUTTON", "INPUT", "SUMMARY"].includes(event.target.tagName) && event.key === " ") return;
    const actions = { " ": () => setShow(state.show === "left" ? "right" : "left"), s: () => choose("split"),
      l: () => setLayer("labels"), c: () => setLayer("confidence"), f: fullScreen,
      ",": () => open(state.image - 1), ".": () => open(state.image + 1) };
    if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
    else if (/^[0-9]$/.test(event.key)) setOpacity(event.key === "0" ? 100 : 10 * Number(event.key));
  });
  $("opacity").oninput = () => setOpacity(Number($("opacity").value));
  $("full").onclick = fullScreen;
  $("fold").onclick = () => $("fold").setAttribute("aria-expanded", !$("panel").classList.toggle("folded"));
  for (const button of document.querySelectorAll("[data-show]")) button.onclick = () => choose(button.dataset.show);
  for (const button of document.querySelectorAll("[data-layer]")) button.onclick = () => setLayer(button.dataset.layer);
  for (const button of document.querySelectorAll("[data-all]")) button.onclick = () => {
    state.off = new Set(button.dataset.all ? [] : data.classes.keys());
    listClasses(); paint();
  };
  if (data.images.length > 1) $("strip").replaceChildren(...data.images.map((about, k) => {
    const button = document.createElement("button"), image = document.createElement("img");
    [image.src, image.alt, button.title] = [about.thumbnail || about.photo, about.name, about.name];
    button.append(image);
    button.onclick = () => open(k);
    return button;
  }));
  if (matchMedia("(max-width: 640px)").matches) $("fold").click();
  setSplit(50);
  setLayer("labels");
  await open(data.start || 0);
  $("right").focus();
})();
