"use strict";
// One code, from its inputs to its value: the patch times the kernel, the running sum, the winner of the pool, the
// multiplier and the shift, and the clip. All of it comes from `cell` in cells.js.

const FIRST_PARTS = 5;
const ALWAYS = ["Left", "Right", "Close"]; // the keys of a layer without maps

const TERMS_GAP = 22;

/** Widths of the cells of inputs, weights and products, with letters of so many pixels; and of all grids in a row. */
function termsWidths({ names, characters }, columns, letters) {
  const cells = names.map((name) => Math.max(letters + 9, Math.ceil(letters * 0.6 * characters[name] + 5)));
  return { cells, wide: cells.reduce((sum, cell) => sum + cell * columns, 0) + TERMS_GAP * (cells.length - 1) };
}

/** A canvas of three grids, inputs x weights = products. columns: of each. isFolded: the products come below the others. */
function termsPicture(terms, columns, scales, letters, isFolded) {
  const rows = Math.ceil(terms.length / columns), isProduct = terms[0].q !== null, gap = TERMS_GAP, { names, highest } = scales;
  const { cells, wide } = termsWidths(scales, columns, letters), high = letters + 9;
  const canvas = make("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", isProduct ? "Inputs, weights and their products; also given as text below" : "The inputs that are added");
  const folded = isFolded && isProduct, first = (cells[0] + cells[1]) * columns + gap, last = cells[2] * columns + gap;
  const context = folded ? sized(canvas, Math.max(first, last), rows * high * 2 + 6) : sized(canvas, wide, rows * high);
  PALETTE.ground = PALETTE.raised;
  let [x, y] = [0, 0];
  names.forEach((name, at) => {
    if (at === 2 && folded) [x, y] = [gap, rows * high + 6];
    if (at > 0) {
      context.font = "600 14px system-ui, sans-serif";
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillStyle = PALETTE.ink;
      context.fillText(at === 1 ? "\u00d7" : "=", x - gap / 2, y + (rows * high) / 2);
    }
    drawGrid(context, {
      x, y, rows, columns, cell: [cells[at], high], kind: name === "x" ? scales.kind : "signed", highest: highest[name],
      values: (i) => (i < terms.length ? terms[i][name] : null), text: say, size: letters,
    });
    x += cells[at] * columns + gap;
  });
  return canvas;
}

/** The terms of a cell in parts that people can look at: [{title, terms, columns}]. */
function partsOf(layer, terms, isNarrow) {
  const [, rows, columns] = layer.inputShape;
  if (layer.kind !== "conv" && rows * columns === 1) {
    const size = 40, count = Math.ceil(terms.length / size);
    return Array.from({ length: count }, (_, i) => {
      const part = terms.slice(i * size, (i + 1) * size);
      return { title: `inputs ${i * size} to ${i * size + part.length - 1}`, terms: part, columns: isNarrow ? 5 : 8 };
    });
  }
  const isPicture = layer.inputShape[0] === 1, name = (channel) => (isPicture ? "picture" : `map ${channel}`), parts = new Map();
  const areRows = layer.kind === "linear" && columns > 8; // a whole map would be too wide: row by row
  for (const term of terms) {
    const title = areRows ? `${name(term.channel)}, row ${term.row}` : name(term.channel);
    if (!parts.has(title)) parts.set(title, []);
    parts.get(title).push(term);
  }
  const across = layer.kind === "conv" ? layer.shape[3] : areRows ? (isNarrow ? 5 : 8) : columns;
  return [...parts].map(([title, part]) => ({ title, terms: part, columns: across }));
}

/** The running sum as a line. */
function runningPicture(story, available) {
  const canvas = make("canvas"), [width, height] = [available, 96], context = sized(canvas, width, height);
  const values = [0, ...story.running, story.sum], [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (i) => 4 + (i / (values.length - 1)) * (width - 12), y = (value) => 18 + ((high - value) / (high - low || 1)) * (height - 36);
  context.fillStyle = PALETTE.soft;
  context.fillRect(0, y(0) - 0.5, width, 1);
  context.strokeStyle = PALETTE.accent;
  context.lineWidth = 2;
  context.lineJoin = "round";
  context.beginPath();
  values.forEach((value, i) => context.lineTo(x(i), y(value)));
  context.stroke();
  context.fillStyle = PALETTE.differs;
  context.beginPath();
  context.arc(x(values.length - 1), y(story.sum), 4.5, 0, 7);
  context.fill();
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = PALETTE.ink;
  context.textBaseline = "middle";
  const label = (value, i, below) => {
    context.textAlign = x(i) > width - 60 ? "right" : x(i) < 60 ? "left" : "center";
    context.fillText(say(value), x(i), y(value) + (below ? 9 : -9));
  };
  if (high > 0) label(high, values.indexOf(high), false);
  if (low < 0) label(low, values.indexOf(low), true);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The running sum: from ${say(low)} to ${say(high)}, at the end ${say(story.sum)}`);
  return canvas;
}

/** The list of what happens to the sum. */
function stepsOf(layer, story, network, logits) {
  const step = (name, ...content) => make("li", {}, make("span", {}, name), make("div", {}, ...content));
  const strong = (text) => make("strong", {}, text), small = (text) => make("small", {}, text);
  const products = story.sum - story.bias, steps = [];
  const zeros = story.terms.filter((term) => term.product === 0).length;
  const what = layer.codes ? "product" : "code";
  steps.push(step(`Sum of ${what}s`, strong(say(products)), small(`${say(story.terms.length)} ${what}s, ${say(zeros)} of them 0`)));
  if (layer.codes) steps.push(step("Add the bias", `${say(products)} ${story.bias < 0 ? "\u2212" : "+"} ${say(Math.abs(story.bias))} = `, strong(say(story.sum))));
  if (layer.pool > 1) {
    const shown = make("span", { className: "window mono" }, ...story.sums.map((sum, i) => make("span", { className: i === story.winner.index ? "winner" : "" }, say(sum))));
    shown.style.gridTemplateColumns = `repeat(${layer.pool}, auto)`;
    const from = `row ${story.winner.row}, column ${story.winner.column} of the map before pooling`;
    steps.push(step("Winner of the pool", shown, small(`${say(story.sum)} is the largest of ${story.sums.length} sums (the first of equal ones): ${from}. Its patch is shown here.`)));
  }
  if (story.multiplier === null) {
    const top = judged(logits).answer;
    const probability = chance(logits, network.logitScale, story.channel);
    steps.push(step("It is a logit", strong(say(story.sum)), small(`The last layer ends here. It stands for ${about(story.real)}, ${probability.toFixed(1)} % by softmax; the largest logit, ${say(logits[top])} for ${network.classNames[top]}, is the answer.`)));
    return steps;
  }
  const factor = story.multiplier / 2 ** story.shift;
  steps.push(
    step("Times the multiplier", `${say(story.sum)} \u00d7 ${say(story.multiplier)} = `, strong(say(story.product))),
    step("Shift right, rounded", `(\u2026 + 2`, make("sup", {}, String(story.shift - 1)), `) >> ${story.shift} = `, strong(say(story.shifted)),
      small(`Together that is \u00d7 ${factor.toPrecision(5)}, and the float it stands for is ${about(story.scaled, 3)}, rounded half up.`)),
    step(`Clip to 0 to ${story.qmax}`, strong(say(story.code)), small(Number(story.shifted) === story.code ? "Nothing to clip." : Number(story.shifted) < 0 ? "Negative: this is the ReLU." : "Beyond the largest code: saturated.")),
  );
  return steps;
}

/** The sum as text, without the terms that are 0. */
function termsText(terms, most = 400) {
  const counted = terms.filter((term) => term.product !== 0), shown = counted.slice(0, most);
  const words = shown.map(({ x, w, q }) => (q === null ? say(x) : `${say(x)}\u00b7${w < 0 ? `(${say(w)})` : say(w)}`)).join(" + ") || "0";
  const rest = counted.length > most ? ` + ${say(counted.length - most)} more` : "";
  return `${words}${rest} = ${say(terms.reduce((sum, term) => sum + term.product, 0))}`;
}

/** The whole story in one line. */
function formulaOf(layer, { sum, multiplier, shift, shifted, code }) {
  const words = [`${layer.codes ? "\u03a3 x\u00b7w + b" : "\u03a3 x"} = ${say(sum)} \u2192 `];
  if (multiplier !== null) words.push(`(${say(sum)} \u00d7 ${say(multiplier)} + 2`, make("sup", {}, String(shift - 1)), `) >> ${shift} = ${say(shifted)} \u2192 `);
  return make("p", { className: "formula mono" }, ...words, make("b", {}, say(code)));
}

/** What is drawn of every term, the largest of each and how many characters it takes. */
function scalesOf(layer, terms, kind) {
  const names = layer.codes ? ["x", "w", "product"] : ["x"], most = (value) => terms.reduce((best, term) => Math.max(best, value(term)), 0);
  return {
    names, kind, characters: Object.fromEntries(names.map((name) => [name, Math.max(2, most((term) => say(term[name]).length))])),
    highest: { x: layer.inputMax, w: Math.max(layer.highest - layer.zeroPoint, layer.zeroPoint - layer.lowest), product: most((term) => Math.abs(term.product)) },
  };
}

/** The panel. move(key): to a neighbour; close(). Returned: panel, and show(network, index of layer, inputs, output, logits). */
function makeInspector(move, close) {
  const title = make("h4"), body = make("div"), keys = make("div", { className: "pad-keys" });
  const panel = make("section", { className: "panel", id: "inspector" }, make("div", { className: "headline" }, title, keys), body);
  panel.setAttribute("aria-label", "How this number was made");
  const arrows = [["ArrowLeft", "\u2190", "Left"], ["ArrowRight", "\u2192", "Right"], ["ArrowUp", "\u2191", "Up"], ["ArrowDown", "\u2193", "Down"]];
  const press = (key, text, label) => {
    const button = make("button", { type: "button", title: label }, text);
    button.setAttribute("aria-label", label);
    button.addEventListener("click", () => (key === "Escape" ? close() : move(key)));
    keys.append(button);
  };
  arrows.forEach((arrow) => press(...arrow));
  press("PageUp", "Map \u2212", "Previous map");
  press("PageDown", "Map +", "Next map");
  press("Escape", "Close", "Close");
  panel.addEventListener("keydown", (event) => event.key === "Escape" && close());
  let isWhole = false, isTextOpen = false, before = "", again = () => {};

  /** The left side: inputs x weights = products, map by map. */
  function products(layer, parts, scales, letters, isFolded) {
    const shown = isWhole ? parts : parts.slice(0, FIRST_PARTS), terms = parts.flatMap((part) => part.terms);
    let total = 0;
    const figures = shown.map((part) => {
      const sum = part.terms.reduce((all, term) => all + term.product, 0);
      total += sum;
      const caption = make("figcaption", {}, make("strong", {}, part.title), `: ${say(sum)}${parts.length > 1 ? `, so far ${say(total)}` : ""}`);
      return make("figure", {}, caption, termsPicture(part.terms, part.columns, scales, letters, isFolded));
    });
    const more = make("button", { type: "button", hidden: shown.length === parts.length }, `Show all ${parts.length}`);
    more.addEventListener("click", () => {
      isWhole = true;
      again();
    });
    const zero = layer.zeroPoint ? ` (each minus its zero point, ${layer.zeroPoint})` : "", outside = terms.filter((term) => !term.inside).length;
    const words = layer.codes ? `Codes \u00d7 weights${zero} = products` : "The codes that are added";
    const remark = make("p", { className: "small", hidden: !outside }, `${say(outside)} of the codes lie outside the map: padding, 0.`);
    return make("div", {}, make("h5", {}, words), remark, make("div", { className: "blocks" }, ...figures), more);
  }

  /** The right side: what becomes of their sum. */
  function consequences(layer, story, network, logits, width) {
    const text = make("details", { open: isTextOpen }, make("summary", {}, "The sum as text"), make("p", { className: "terms mono" }, termsText(story.terms)));
    text.addEventListener("toggle", () => (isTextOpen = text.open));
    return make(
      "div", {}, make("h5", {}, layer.codes ? "The running sum, and at last the bias" : "The running sum"), runningPicture(story, width),
      make("p", { className: "small" }, `No sum of this layer can leave \u00b1${say(layer.accumulatorBound)}, whatever the picture: ${layer.registerBits} bits are enough.`),
      make("ol", { className: "steps" }, ...stepsOf(layer, story, network, logits)), text,
    );
  }

  function show(network, at, inputs, output, logits) {
    const layer = network.layers[at], story = cell(network, at, inputs, output), place = `${at} ${output}`;
    if (place !== before) isWhole = false;
    before = place;
    again = () => show(network, at, inputs, output, logits);
    const isLogit = story.multiplier === null, isMap = layer.outputShape[1] * layer.outputShape[2] > 1;
    const where = isLogit ? `class ${network.classNames[output]}` : placeName(layer.outputShape, output);
    title.textContent = `${layer.name}, ${where}: ${isLogit ? "logit" : "code"} ${say(story.code)}`;
    [...keys.children].forEach((key) => (key.hidden = !isMap && !ALWAYS.includes(key.title)));

    const whole = Math.max(200, panel.clientWidth - 34 || 300), isWide = whole > 680;
    const parts = partsOf(layer, story.terms, whole < 420), scales = scalesOf(layer, story.terms, at === 0 ? "bytes" : "codes");
    // Side by side where there is room, in letters as large as fit.
    const widthAt = (size) => termsWidths(scales, parts[0].columns, size).wide, room = isWide ? whole * 0.55 : whole;
    const letters = (parts.length > 1 ? [11, 10, 9] : [13, 12, 11, 10, 9]).find((size) => widthAt(size) <= room) || (isWide ? 8 : 11);
    const isFolded = !isWide && widthAt(letters) > room;
    const left = Math.max(240, widthAt(letters) + 2), columns = make("div", { className: "story" });
    if (isWide) columns.style.gridTemplateColumns = `${left}px minmax(0, 1fr)`;
    columns.append(products(layer, parts, scales, letters, isFolded), consequences(layer, story, network, logits, isWide ? whole - left - 32 : whole));
    body.replaceChildren(formulaOf(layer, story), columns);
  }
  return { panel, show };
}
