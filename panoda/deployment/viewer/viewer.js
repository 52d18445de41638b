/* The predictions of a folder on the sphere. One canvas holds the photograph with what lies over it; pannellum
   shows that canvas as the texture of the sphere, so nothing has to be fetched or kept in step. */
"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const state = { image: 0, mode: "labels", opacity: 0.55, off: new Set(), picked: null, ready: false };
  window.panoda = state;

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  async function picture(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  }
  function canvas(width, height) {
    const made = document.createElement("canvas");
    [made.width, made.height] = [width, height];
    return made;
  }

  const shown = canvas(1, 1); // the texture
  let photo, label, confidence, over, viewer;

  /* Red over yellow to green, as in the scale of the panel. */
  function heat(value) {
    const t = value / 255, [a, b, u] = t < 0.5 ? [[215, 25, 28], [255, 211, 77], 2 * t] : [[255, 211, 77], [26, 150, 65], 2 * t - 1];
    return a.map((x, i) => x + (b[i] - x) * u);
  }
  const heats = Array.from({ length: 256 }, (_, value) => heat(value));

  function paintOver() {
    const about = data.images[state.image], { width, height } = about;
    over = over && over.width === width && over.height === height ? over : canvas(width, height);
    const context = over.getContext("2d"), pixels = context.createImageData(width, height);
    const colours = data.classes.map((c, id) => (state.off.has(id) ? null : c.colour));
    const packed = new Uint32Array(pixels.data.buffer);
    const pack = (rgb) => (255 << 24) | (Math.round(rgb[2]) << 16) | (Math.round(rgb[1]) << 8) | Math.round(rgb[0]);
    if (state.mode === "confidence") {
      const table = heats.map(pack), [w, h] = about.confidenceSize;
      for (let y = 0, k = 0; y < height; y++) {
        const row = Math.floor((y * h) / height) * w;
        for (let x = 0; x < width; x++, k++) {
          const id = label[k];
          if (id < colours.length && colours[id]) packed[k] = table[confidence[row + Math.floor((x * w) / width)]];
        }
      }
    } else {
      const table = colours.map((c) => (c ? pack(c) : 0));
      for (let k = 0; k < label.length; k++) packed[k] = label[k] < table.length ? table[label[k]] : 0;
    }
    context.putImageData(pixels, 0, 0);
  }

  function compose() {
    const context = shown.getContext("2d");
    context.globalAlpha = 1;
    context.drawImage(photo, 0, 0, shown.width, shown.height);
    if (state.mode !== "photo") {
      context.globalAlpha = state.opacity;
      context.drawImage(over, 0, 0);
    }
    if (viewer && state.ready) refresh();
  }

  /* pannellum uploads the canvas whenever it draws; asked to update, it draws. */
  function refresh() {
    viewer.setUpdate(true);
    requestAnimationFrame(() => requestAnimationFrame(() => viewer.setUpdate(false)));
  }

  async function open(index) {
    state.image = (index + data.images.length) % data.images.length;
    state.ready = false;
    const about = data.images[state.image];
    [photo, label, confidence] = await Promise.all([picture(about.photo), unpack(about.label), unpack(about.confidence)]);
    [shown.width, shown.height] = [about.width, about.height];
    paintOver();
    compose();
    $("title").textContent = about.name;
    $("taken").textContent = about.takenFor;
    $("picked").textContent = "Click somewhere to read its class.";
    state.picked = null;
    for (const [k, button] of [...$("strip").children].entries()) button.setAttribute("aria-pressed", k === state.image);
    listClasses();
    if (viewer) viewer.destroy();
    $("sphere").replaceChildren();
    viewer = pannellum.viewer($("sphere"), {
      type: "equirectangular", panorama: shown, dynamic: true, dynamicUpdate: true, autoLoad: true,
      haov: about.fov, vaov: about.latTop - about.latBottom, vOffset: (about.latTop + about.latBottom) / 2,
      hfov: Math.min(100, about.fov), minHfov: 10, maxHfov: 120, pitch: about.fov < 180 ? (about.latTop + about.latBottom) / 2 : 0,
      minPitch: -90, maxPitch: 90, backgroundColor: [0.12, 0.13, 0.14], compass: false, showControls: false,
    });
    state.viewer = viewer;
    const ready = () => { state.ready = true; refresh(); };
    if (viewer.isLoaded()) ready();
    else viewer.on("load", ready);
  }

  function listClasses() {
    const shares = data.images[state.image].shares;
    $("classes").replaceChildren(...data.classes.map((c, id) => {
      const item = document.createElement("li"), row = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !state.off.has(id);
      box.onchange = () => { state.off[box.checked ? "delete" : "add"](id); paintOver(); compose(); };
      const colour = document.createElement("i"), name = document.createElement("span"), share = document.createElement("small");
      colour.style.background = `rgb(${c.colour})`;
      name.textContent = c.name;
      share.textContent = `${(100 * shares[id]).toFixed(1)} %`;
      row.append(box, colour, name, share);
      item.append(row);
      item.hidden = shares[id] === 0;
      return item;
    }));
  }

  function setMode(mode) {
    state.mode = mode;
    for (const button of document.querySelectorAll("#modes button")) button.setAttribute("aria-pressed", button.dataset.mode === mode);
    $("scale").hidden = mode !== "confidence";
    if (photo) { paintOver(); compose(); }
  }
  function setOpacity(percent) {
    state.opacity = percent / 100;
    $("opacity").value = percent;
    if (photo) compose();
  }
  let before = "labels";
  function toggle() {
    if (state.mode === "photo") setMode(before);
    else { before = state.mode; setMode("photo"); }
  }
  function fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen();
  }

  /* What lies in a direction (degrees); the middle of the image is at yaw 0. */
  function at(pitch, yaw) {
    const about = data.images[state.image];
    const x = Math.floor((yaw / about.fov + 0.5) * about.width);
    const y = Math.floor(((about.latTop - pitch) / (about.latTop - about.latBottom)) * about.height);
    if (x < 0 || y < 0 || y >= about.height || (x >= about.width && about.fov < 359.5)) return null;
    const column = Math.min(x, about.width - 1), id = label[y * about.width + column];
    if (id >= data.classes.length) return null;
    const [w, h] = about.confidenceSize;
    const sure = confidence[Math.floor((y * h) / about.height) * w + Math.floor((column * w) / about.width)] / 255;
    return { name: data.classes[id].name, id, confidence: sure, x: column, y, lon: yaw + about.centreLon, lat: pitch };
  }
  function pick(event) {
    const [pitch, yaw] = viewer.mouseEventToCoords(event);
    state.picked = at(pitch, yaw);
    const found = state.picked;
    $("picked").textContent = found
      ? `${found.name}, ${(100 * found.confidence).toFixed(0)} % (${found.lon.toFixed(0)}\u00b0, ${found.lat.toFixed(0)}\u00b0)`
      : "nothing here";
  }
  state.at = at;

  let pressed = null;
  $("sphere").addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; }, true);
  $("sphere").addEventListener("pointerup", (event) => {
    if (pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 6) pick(event);
    pressed = null;
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.tagName === "BUTTON" && event.key === " ") return;
    const actions = { " ": toggle, l: () => setMode("labels"), c: () => setMode("confidence"), f: fullScreen,
      ",": () => open(state.image - 1), ".": () => open(state.image + 1) };
    if (actions[event.key]) { actions[event.key](); event.preventDefault(); }
    else if (/^[0-9]$/.test(event.key)) setOpacity(event.key === "0" ? 100 : 10 * Number(event.key));
  });
  $("opacity").oninput = () => setOpacity(Number($("opacity").value));
  $("full").onclick = fullScreen;
  $("fold").onclick = () => $("fold").setAttribute("aria-expanded", !$("panel").classList.toggle("folded"));
  for (const button of document.querySelectorAll("#modes button")) button.onclick = () => setMode(button.dataset.mode);
  for (const button of document.querySelectorAll("[data-all]")) button.onclick = () => {
    state.off = new Set(button.dataset.all ? [] : data.classes.keys());
    listClasses(); paintOver(); compose();
  };
  if (data.images.length > 1) $("strip").replaceChildren(...data.images.map((about, k) => {
    const button = document.createElement("button"), image = document.createElement("img");
    [image.src, image.alt, button.title] = [about.thumbnail, about.name, about.name];
    button.append(image);
    button.onclick = () => open(k);
    return button;
  }));
  if (matchMedia("(max-width: 640px)").matches) $("fold").click();
  setMode("labels");
  await open(0);
  $("sphere").focus();
})();
