"use strict";
// The drawer of weights: the kernels of a layer as codes, how often each code occurs, and the bits of one weight.

/** The bits of weight `index` in the packed file: [{byte, bits: [{value, isOwn}], most significant first}]. */
function bitsOf(layer, index) {
  const stream = (bit) => {
    const weight = Math.floor(bit / layer.bits);
    return weight < layer.codes.length ? ((layer.codes[weight] - layer.lowest) / layer.step >> bit % layer.bits) & 1 : 0;
  };
  const first = index * layer.bits, last = first + layer.bits - 1, bytes = [];
  for (let byte = first >> 3; byte <= last >> 3; byte++) {
    const bits = [7, 6, 5, 4, 3, 2, 1, 0].map((bit) => byte * 8 + bit);
    bytes.push({ byte, bits: bits.map((bit) => ({ value: stream(bit), isOwn: bit >= first && bit <= last })) });
  }
  return bytes;
}

/** How often each code of the grid occurs: [[code, count], ...] in ascending order. */
function countsOf(layer) {
  const counts = new Map();
  for (let code = layer.lowest; code <= layer.highest; code += layer.step) counts.set(code, 0);
  for (const code of layer.codes) counts.set(code, counts.get(code) + 1);
  return [...counts];
}

function histogramPicture(layer, available) {
  const counts = countsOf(layer), most = Math.max(...counts.map(([, count]) => count)), canvas = make("canvas");
  const width = Math.min(available, Math.max(160, counts.length * 48)), wide = width / counts.length, [top, height] = [16, 110];
  const context = sized(canvas, width, top + height + 18);
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "center";
  counts.forEach(([code, count], i) => {
    const high = (count / most) * height, gap = wide > 6 ? 2 : wide > 3 ? 1 : 0;
    context.fillStyle = code === layer.zeroPoint ? PALETTE.soft : PALETTE.accent;
    context.fillRect(i * wide, top + height - high, wide - gap, high);
    context.fillStyle = PALETTE.ink;
    if (wide >= 30) context.fillText(say(count), (i + 0.5) * wide, top + height - high - 4);
    const isMarked = wide >= 20 || code === layer.lowest || code === layer.zeroPoint || code === layer.highest;
    if (isMarked) context.fillText(say(code), Math.max(12, Math.min(width - 12, (i + 0.5) * wide)), top + height + 14);
  });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `How often each of ${counts.length} codes occurs: ${counts.slice(0, 32).map(([code, count]) => `${code}: ${count}`).join(", ")}`);
  return canvas;
}

/** Opens the drawer of a layer within `item`. output: whose weights come first. Returned: redraw(). */
function openWeights(item, layer, output) {
  const outputs = layer.shape[0], each = layer.codes.length / outputs, isMap = layer.kind === "linear";
  const areAllShown = !isMap && layer.shape[1] === 1; // one kernel for each output: all of them fit side by side
  const shape = areAllShown ? [outputs, layer.shape[2], layer.shape[3]] : isMap ? layer.inputShape : layer.shape.slice(1);
  const centred = Int16Array.from(layer.codes, (code) => code - layer.zeroPoint);
  let shown = output, chosen = 0;
  const title = make("h4", {}, `Weights of ${layer.name}`), which = make("p", { className: "small" }), keys = make("div", { className: "pad-keys" });
  const bits = make("div", { className: "bits mono" }), words = make("p", { className: "small" });
  const base = () => (areAllShown ? 0 : shown * each);

  const view = gridView({
    shape, kind: "signed", highest: Math.max(layer.highest - layer.zeroPoint, layer.zeroPoint - layer.lowest), tallest: 300, ground: "raised",
    characters: Math.max(say(layer.lowest).length, say(layer.highest).length), print: (value) => say(value + layer.zeroPoint),
    label: `Weights of ${layer.name}. Arrow keys move through them, Enter shows the bits of one.`,
    pick: (index) => {
      chosen = index;
      redraw();
    },
    hover: (index) => {
      const value = layer.codes[base() + (index ?? 0)];
      if (index !== null && document.activeElement === view.canvas) announce(`weight ${say(value)}`);
    },
  });
  const redraw = () => {
    which.textContent = areAllShown ? `All ${outputs} kernels, as codes.` : `The ${say(each)} weights of output ${shown} of ${outputs}, as codes.`;
    view.draw(areAllShown ? centred : centred.subarray(shown * each, (shown + 1) * each), { chosen });
    const index = base() + chosen, code = layer.codes[index], number = (code - layer.lowest) / layer.step;
    const pattern = number.toString(2).padStart(layer.bits, "0");
    const zero = layer.zeroPoint ? `, weight ${say(code - layer.zeroPoint)} after the zero point ${layer.zeroPoint}` : "";
    words.textContent = `Weight ${say(index)} has code ${say(code)}${zero}. It is number ${number} of the grid from ${say(layer.lowest)} to ${say(layer.highest)}: bits ${pattern}. In the packed file, with the highest bit of each byte first:`;
    bits.replaceChildren(...bitsOf(layer, index).map(({ byte, bits: found }) => {
      const cells = found.map(({ value, isOwn }) => make("span", { className: isOwn ? "mine" : "" }, String(value)));
      return make("span", {}, `byte ${say(byte)} `, make("span", { className: "byte" }, ...cells));
    }));
  };
  const turn = (text, label, by) => {
    const button = make("button", { type: "button" }, text);
    button.setAttribute("aria-label", label);
    button.addEventListener("click", () => {
      shown = (shown + by + outputs) % outputs;
      redraw();
    });
    keys.append(button);
  };
  if (!areAllShown && outputs > 1) {
    turn("\u2190", "Previous output", -1);
    turn("\u2192", "Next output", 1);
  }
  const zeros = layer.codes.reduce((count, code) => count + (code === layer.zeroPoint), 0);
  const share = zeros ? `${((100 * zeros) / layer.codes.length).toFixed(1)} % are 0` : "none is 0";
  const method = layer.quantizer ? `, quantizer ${layer.quantizer}` : "";
  const panel = make(
    "section", { className: "panel weights" }, make("div", { className: "headline" }, title, keys), which,
    make("div", { className: "map" }, view.canvas), make("h5", {}, "One weight, bit by bit"), words, bits,
    make("h5", {}, "How often each code occurs"),
    make("p", { className: "small" }, `${say(layer.codes.length)} weights, ${kilobytes(layer.weightBytes)} at ${layer.bits} bit${layer.bits > 1 ? "s" : ""} each${method}; ${share}.`),
  );
  panel.setAttribute("aria-label", `Weights of ${layer.name}`);
  item.append(panel);
  panel.append(histogramPicture(layer, Math.max(160, panel.clientWidth - 34)));
  redraw();
  return { panel, redraw };
}
