"use strict";
// Grids of integers on a canvas. The picture, the maps between layers, patches, kernels and weights are all drawn, pointed
// at and walked through with arrow keys by what is in this file.

// ---- elements and words

/** A new element. properties: of the element; children: elements or texts. */
function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

const byId = (id) => document.getElementById(id);

/** An integer for people: 1,234 with a real minus sign. */
function say(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, ",").replace("-", "\u2212");
}

/** A number with a few digits after the point. */
function about(value, digits = 2) {
  const [whole, part] = value.toFixed(digits).split(".");
  return `${say(whole)}.${part}`;
}

/** A few words: "1", "1 and 2", "1, 2 and 3". */
function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** Words as a sentence. */
const sentence = (words) => (words ? `${words[0].toUpperCase()}${words.slice(1)}.` : "");

// ---- colours: tables from the page's CSS variables, made again when the screen turns dark or light

const PALETTE = { version: 0 }; // version: counts up whenever colours or the width of the page change

function readPalette() {
  PALETTE.version++;
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const parts = (name) => [1, 3, 5].map((at) => parseInt(color(name).slice(at, at + 2), 16));
  const ramp = (stops) => Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1), from = Math.min(Math.floor(place), stops.length - 2);
    return stops[from].map((part, c) => Math.round(part + (stops[from + 1][c] - part) * (place - from)));
  });
  PALETTE.codes = ramp(["code-0", "code-1", "code-2"].map(parts));
  PALETTE.bytes = ramp([[0, 0, 0], [255, 255, 255]]);
  PALETTE.plus = ramp(["zero", "plus"].map(parts));
  PALETTE.minus = ramp(["zero", "minus"].map(parts));
  for (const name of ["ink", "soft", "paper", "raised", "accent", "differs", "rule"]) PALETTE[name] = color(name);
}

/**
 * kind: "codes" or "bytes", 0..highest, or "signed", -highest..highest -> [red, green, blue]. Most codes of many bits are
 * small: from 5 bits on, small ones get more of the colours, at 8 bits by a square root.
 */
function colorOf(kind, value, highest) {
  const share = highest ? Math.min(1, Math.abs(value) / highest) : 0, isWide = highest > 15 && kind !== "bytes";
  const part = Math.round(255 * (isWide ? share ** Math.max(0.5, 4 / Math.log2(highest + 1)) : share));
  return (kind === "signed" ? (value < 0 ? PALETTE.minus : PALETTE.plus) : PALETTE[kind])[part];
}

const luminance = (color) => {
  const [r, g, b] = color.map((part) => (part <= 10 ? part / 3295 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};

/** Black or white, whichever is easier to read on it. */
const inkOn = (color) => (luminance(color) > 0.18 ? "#000000" : "#ffffff");

// ---- drawing

/** Gives a canvas this size in CSS pixels, sharp on any screen, and empties it. */
function sized(canvas, width, height) {
  const dense = window.devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * dense), Math.round(height * dense)];
  if (canvas.width !== wide || canvas.height !== high) {
    [canvas.width, canvas.height] = [wide, high];
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

const SCRATCH = document.createElement("canvas");

/**
 * One grid. values(i): the number of cell i, row by row, or null for an empty cell. cell: [width, height] in pixels.
 * Numbers are printed if `text` is given and a cell is large enough.
 */
function drawGrid(context, { x, y, rows, columns, cell, values, kind, highest, text = null, size = 0 }) {
  [SCRATCH.width, SCRATCH.height] = [columns, rows];
  const small = SCRATCH.getContext("2d"), picture = small.createImageData(columns, rows), data = picture.data;
  const isPicture = kind === "bytes", empty = isPicture ? [0, 0, 0] : colorOf("codes", 0, 1), colors = [];
  for (let i = 0; i < rows * columns; i++) {
    const value = values(i), color = value === null ? empty : colorOf(kind, value, highest);
    colors.push(color);
    data[4 * i] = color[0];
    data[4 * i + 1] = color[1];
    data[4 * i + 2] = color[2];
    data[4 * i + 3] = value === null && !isPicture ? 90 : 255;
  }
  small.putImageData(picture, 0, 0);
  context.imageSmoothingEnabled = false;
  const [wide, high] = cell;
  context.drawImage(SCRATCH, x, y, columns * wide, rows * high);
  if (wide >= 7 && high >= 7) {
    context.fillStyle = PALETTE.ground;
    for (let i = 1; i < columns; i++) context.fillRect(x + i * wide - 0.5, y, 1, rows * high);
    for (let i = 1; i < rows; i++) context.fillRect(x, y + i * high - 0.5, columns * wide, 1);
  }
  if (text === null || !size) return;
  context.font = `${size}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let i = 0; i < rows * columns; i++) {
    const value = values(i);
    if (value === null) continue;
    context.fillStyle = inkOn(colors[i]);
    context.fillText(text(value), x + ((i % columns) + 0.5) * wide, y + (Math.floor(i / columns) + 0.5) * high + 0.5);
  }
}

/** A frame around cells. */
function frame(context, x, y, width, height, color, thick = 2) {
  context.lineWidth = thick + 2;
  context.strokeStyle = PALETTE.paper;
  context.strokeRect(x, y, width, height);
  context.lineWidth = thick;
  context.strokeStyle = color;
  context.strokeRect(x, y, width, height);
}

/** The largest letters with which numbers of so many characters fit a cell, at most 12 pixels; 0 if none can be read. */
function letterSize([wide, high], characters) {
  const size = Math.min(12, high - 5, (wide - 2) / (0.58 * characters));
  return size >= 7.5 ? size : 0;
}

/**
 * Where everything is: `channels` tiles of rows x columns cells, side by side; single numbers become a strip.
 * available: pixels across; tallest: about how many down. cell: a fixed size instead of one that fits.
 */
function layOut([channels, rows, columns], available, tallest, characters, fixed = null) {
  const isStrip = rows * columns === 1, gap = isStrip ? 0 : 8;
  const placed = (wide, high) => {
    const most = Math.max(1, Math.min(channels, Math.floor((available + gap) / (columns * wide + gap))));
    const down = Math.ceil(channels / most), across = Math.ceil(channels / down); // rows as long as each other
    return {
      channels, rows, columns, across, gap, cell: [wide, high], tile: [columns * wide + gap, rows * high + gap],
      width: across * (columns * wide + gap) - gap, height: down * (rows * high + gap) - gap,
      size: letterSize([wide, high], characters),
    };
  };
  if (fixed !== null) return placed(...fixed);
  const largest = isStrip ? Math.max(24, Math.ceil(8 * characters)) : 24;
  for (let side = largest; side > 2; side--) {
    const layout = placed(side, isStrip ? Math.min(side, 24) : side);
    if (layout.width <= available && layout.height <= tallest) return layout;
  }
  return placed(2, 2);
}

/**
 * A canvas with the numbers of a stage, in the order (channel, row, column). settings: shape, kind, highest, tallest,
 * characters (of the longest number), label (of the canvas), name(index) (words for a cell), pick(index), hover(index or
 * null), and perhaps width (in pixels, instead of that of its parent), fixed(available) -> [width, height] of a cell,
 * print(number) -> what is written into its cell, and titles (a word above each number of a strip).
 *
 * Returned: canvas; draw(values, marks), where marks has shown (cells of each map; the rest is not computed yet), chosen
 * (index or null) and field ({channels: [from, to], rows: [from, to], columns: [from, to]} or null).
 */
function gridView(settings) {
  const { shape, pick, hover } = settings, [channels, rows, columns] = shape, isStrip = rows * columns === 1;
  const canvas = make("canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", settings.label);
  const at = { pointed: null, walked: null };
  let layout = null, shownValues = null, shownMarks = {}, available = 0, version = null;

  const placeOf = (index) => {
    const channel = Math.floor(index / (rows * columns)), inside = index % (rows * columns);
    const left = (channel % layout.across) * layout.tile[0], top = Math.floor(channel / layout.across) * layout.tile[1];
    return [left + (inside % columns) * layout.cell[0], top + Math.floor(inside / columns) * layout.cell[1]];
  };
  const indexAt = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) * (layout.width + 2) / box.width - 1;
    const y = (event.clientY - box.top) * (layout.height + 2) / box.height - 1;
    const across = Math.floor(x / layout.tile[0]), down = Math.floor(y / layout.tile[1]);
    const column = Math.floor((x - across * layout.tile[0]) / layout.cell[0]);
    const row = Math.floor((y - down * layout.tile[1]) / layout.cell[1]), channel = down * layout.across + across;
    const isCell = across >= 0 && across < layout.across && column >= 0 && column < columns && row >= 0 && row < rows;
    return isCell && channel >= 0 && channel < channels ? (channel * rows + row) * columns + column : null;
  };

  const draw = (values, marks = {}) => {
    [shownValues, shownMarks] = [values, marks];
    if (version !== PALETTE.version) { // measuring makes the browser lay out the page: not for every drawing
      available = settings.width || Math.max(120, canvas.parentElement.clientWidth - 8);
      version = PALETTE.version;
    }
    const fixed = settings.fixed ? settings.fixed(available) : null;
    layout = layOut(shape, available, settings.tallest, settings.characters, fixed);
    const context = sized(canvas, layout.width + 2, layout.height + 2);
    context.translate(1, 1);
    const { shown = Infinity, chosen = null, field = null } = marks, [wide, high] = layout.cell;
    PALETTE.ground = settings.ground ? PALETTE[settings.ground] : PALETTE.paper;
    for (let c = 0; c < channels; c++) {
      const first = c * rows * columns, [x, y] = placeOf(first);
      drawGrid(context, {
        x, y, rows, columns, cell: layout.cell, kind: settings.kind, highest: settings.highest,
        values: (i) => (values === null || (isStrip ? c : i) >= shown ? null : values[first + i]),
        text: settings.titles ? null : settings.print || say, size: layout.size,
      });
      if (settings.titles && values !== null && c < shown) titled(context, settings, c, values[c], x, y, layout.cell);
      if (isStrip && wide >= 7) {
        context.fillStyle = PALETTE.ground;
        context.fillRect(x + wide - 0.5, y, 1, high);
        context.fillRect(x, y + high - 0.5, wide, 1);
      }
      if (field && c >= field.channels[0] && c < field.channels[1]) {
        const [top, left] = [Math.max(0, field.rows[0]), Math.max(0, field.columns[0])];
        const [bottom, right] = [Math.min(rows, field.rows[1]), Math.min(columns, field.columns[1])];
        if (bottom > top && right > left && !isStrip) {
          frame(context, x + left * wide, y + top * high, (right - left) * wide, (bottom - top) * high, PALETTE.differs, 1.5);
        }
      }
    }
    const outline = (index, color, thick) => index !== null && frame(context, ...placeOf(index), wide, high, color, thick);
    outline(at.pointed, PALETTE.accent, 1.5);
    outline(at.walked, PALETTE.accent, 2.5);
    outline(chosen, PALETTE.differs, 2.5);
  };

  // The pointer and the arrow keys have a cell each: a page that scrolls below a resting mouse does not lose the other.
  const goTo = (name, index) => {
    if (at[name] === index) return;
    at[name] = index;
    draw(shownValues, shownMarks);
    hover(index);
  };
  canvas.addEventListener("pointermove", (event) => event.pointerType !== "touch" && goTo("pointed", indexAt(event)));
  canvas.addEventListener("pointerleave", () => goTo("pointed", null));
  canvas.addEventListener("blur", () => goTo("walked", null));
  canvas.addEventListener("click", (event) => {
    const index = indexAt(event);
    if (index === null) return;
    at.walked = null;
    pick(index);
  });
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) goTo("walked", shownMarks.chosen ?? 0);
  });
  canvas.addEventListener("keydown", (event) => {
    const walked = at.walked ?? shownMarks.chosen ?? 0, next = stepFrom(walked, event.key, shape, layout.across);
    if (next !== null) goTo("walked", next);
    else if (event.key === "Enter" || event.key === " ") pick(walked);
    else return;
    event.preventDefault();
  });
  return { canvas, draw, redraw: () => draw(shownValues, shownMarks) };
}

/** The word of a logit above its number. */
function titled(context, settings, index, value, x, y, [wide, high]) {
  context.fillStyle = inkOn(colorOf(settings.kind, value, settings.highest));
  context.textAlign = "center";
  context.textBaseline = "middle";
  const fit = (text, largest) => Math.min(largest, (wide - 4) / (0.56 * text.length));
  const [title, text] = [settings.titles[index], say(value)];
  context.font = `600 ${fit(title, 15)}px system-ui, sans-serif`;
  context.fillText(title, x + wide / 2, y + high * 0.32, wide - 4);
  context.font = `${fit(text, 12)}px system-ui, sans-serif`;
  context.fillText(text, x + wide / 2, y + high * 0.72, wide - 4);
}

/** The cell that an arrow key, PageUp, PageDown, Home or End leads to, as one sees it; null for other keys. */
function stepFrom(index, key, [channels, rows, columns], across) {
  const size = rows * columns;
  let [channel, row, column] = [Math.floor(index / size), Math.floor((index % size) / columns), index % columns];
  if (key === "ArrowRight" && ++column === columns) [channel, column] = [channel + 1, 0];
  else if (key === "ArrowLeft" && --column < 0) [channel, column] = [channel - 1, columns - 1];
  else if (key === "ArrowDown" && ++row === rows) [channel, row] = [channel + across, 0];
  else if (key === "ArrowUp" && --row < 0) [channel, row] = [channel - across, rows - 1];
  else if (key === "PageDown") channel++;
  else if (key === "PageUp") channel--;
  else if (key === "Home") return 0;
  else if (key === "End") return channels * size - 1;
  else if (!key.startsWith("Arrow")) return null;
  return channel < 0 || channel >= channels ? index : (channel * rows + row) * columns + column;
}
