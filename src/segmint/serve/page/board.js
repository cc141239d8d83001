// A drawing board for masks. It holds class indices, not colours, so edges are exact and need no guessing.
// Gradio gives: element, props, trigger, watch. The value is {height, width, runs, names, colors}.
const find = (selector) => element.querySelector(selector);
const canvas = find("canvas"), ring = find(".ring"), size = find(".size"), fillButton = find(".fill");
const pen = canvas.getContext("2d");
const UNKNOWN = 255;
let labels = new Uint8Array(0), width = 0, height = 0, colors = [], chosen = 1, filling = false;
let past = [], last = null;

function unpack(value) {
  const cells = new Uint8Array(value.width * value.height);
  for (let k = 0, at = 0; k < value.runs.length; at += value.runs[k + 1], k += 2) {
    cells.fill(value.runs[k], at, at + value.runs[k + 1]);
  }
  return cells;
}

function pack() {
  const runs = [];
  for (let start = 0, at = 1; at <= labels.length; at++) {
    if (at === labels.length || labels[at] !== labels[start]) {
      runs.push(labels[start], at - start);
      start = at;
    }
  }
  return runs;
}

function show() {
  const picture = pen.createImageData(width, height);
  for (let at = 0; at < labels.length; at++) {
    const color = labels[at] === UNKNOWN ? [255, 255, 255] : colors[labels[at]];
    picture.data.set(color, 4 * at);
    picture.data[4 * at + 3] = 255;
  }
  pen.putImageData(picture, 0, 0);
}

function brushes(names) {
  const row = find(".brushes");
  row.replaceChildren(...names.map((name, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("role", "radio");
    button.dataset.number = number;
    const chip = document.createElement("i");
    chip.className = "chip";
    chip.style.background = `rgb(${colors[number]})`;
    button.append(chip, name);
    button.addEventListener("click", () => choose(number));
    return button;
  }));
  choose(Math.min(chosen, names.length - 1));
}

function choose(number) {
  chosen = number;
  for (const button of element.querySelectorAll(".brushes button")) {
    button.setAttribute("aria-checked", String(Number(button.dataset.number) === number));
  }
}

function open(value) {
  if (!value || !value.runs) return;
  const classes = JSON.stringify([value.names, value.colors]);
  const same = value.width === width && value.height === height && classes === open.classes;
  if (same && String(value.runs) === String(pack())) return;
  if (same) remember(); else past = [];
  ({ width, height, colors } = value);
  labels = unpack(value);
  canvas.width = width;
  canvas.height = height;
  find(".sheet").style.aspectRatio = `${width} / ${height}`;
  find(".sheet").style.setProperty("--ratio", width / height);
  if (classes !== open.classes) brushes(value.names);
  open.classes = classes;
  show();
}

function tell() {
  props.value = { ...props.value, width, height, runs: pack() };
  trigger("input");
}

function remember() {
  past.push(labels.slice());
  if (past.length > 50) past.shift();
}

function diameter() {  // in pixels of the mask; the slider is in per cent of its shorter side
  return Math.max(1, Number(size.value) / 100 * Math.min(width, height));
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * width, (event.clientY - box.top) / box.height * height];
}

function dab(x, y) {
  const radius = diameter() / 2;
  for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(height - 1, y + radius); row++) {
    for (let column = Math.max(0, Math.floor(x - radius)); column <= Math.min(width - 1, x + radius); column++) {
      const near = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2;
      if (near || (column === Math.floor(x) && row === Math.floor(y))) labels[row * width + column] = chosen;
    }
  }
}

function stroke([x, y], [u, v]) {
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(u - x, v - y) / diameter()), Math.ceil(Math.hypot(u - x, v - y)));
  for (let k = 0; k <= steps; k++) dab(x + (u - x) * k / steps, y + (v - y) * k / steps);
}

function fill([x, y]) {
  const start = Math.floor(y) * width + Math.floor(x), old = labels[start];
  if (old === chosen || old === undefined) return;
  const open = [start];
  while (open.length) {
    const at = open.pop();
    if (labels[at] !== old) continue;
    labels[at] = chosen;
    if (at % width > 0) open.push(at - 1);
    if (at % width < width - 1) open.push(at + 1);
    open.push(at - width, at + width);  // outside there is nothing, which is not `old`
  }
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.preventDefault();
  remember();
  if (filling) {
    fill(place(event));
    show();
    tell();
    return;
  }
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  stroke(last, last);
  show();
});
canvas.addEventListener("pointermove", (event) => {
  const shown = diameter() / width * canvas.clientWidth, box = canvas.getBoundingClientRect();
  Object.assign(ring.style, { width: `${shown}px`, height: `${shown}px`, display: filling ? "none" : "block",
    left: `${event.clientX - box.left}px`, top: `${event.clientY - box.top}px` });
  if (!last) return;
  const here = place(event);
  stroke(last, here);
  last = here;
  show();
});
canvas.addEventListener("pointerleave", () => { ring.style.display = "none"; });
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (!last) return;
    last = null;
    tell();
  });
}
fillButton.addEventListener("click", () => {
  filling = !filling;
  fillButton.setAttribute("aria-pressed", String(filling));
});
find(".undo").addEventListener("click", () => {
  if (!past.length) return;
  labels = past.pop();
  show();
  tell();
});
find(".clear").addEventListener("click", () => {
  remember();
  labels.fill(0);
  show();
  tell();
});
watch("value", () => open(props.value));
open(props.value);
