// For people: all sums of a layer, and the whole story of one output, term by term.

/** codes: the layer's input -> Int32Array of layer.mapShape: all its sums before pooling, bias included. */
function sums(network, index, codes) {
  const layer = network.layers[index];
  if (layer.kind === "average") return channelSums(layer, codes);
  const all = new Int32Array(product(layer.mapShape));
  convolve(layer, codes, [0, 0], all);
  return all;
}

/**
 * One output of a layer, computed term by term.
 *
 * codes: the layer's input. output: index into its output, in the order (channel, row, column) of outputShape. Returns
 * channel, row, column of the output; sums: every sum of its pooling window, row by row; winner: the first largest of
 * them, {index, row, column}, its place in the map before pooling; terms of that sum: [{channel, row, column, inside,
 * x, q, w, product}], row and column in the input (outside of it in the padding), q the weight's code, w = q - z (an
 * average: null and 1);
 * running: the sum after each term; bias; sum; then, but for logits, multiplier, shift, product and shifted (decimal
 * strings: they may need 62 bits), scaled (sum * m / 2^k as a float: what is rounded) and qmax; code: the result, for
 * logits the sum; real: the logit that the last layer's sum stands for, or null.
 */
function cell(network, index, codes, output) {
  const layer = network.layers[index], [, height, width] = layer.outputShape, pool = layer.pool;
  const channel = Math.floor(output / (height * width));
  const row = Math.floor(output / width) % height, column = output % width;
  const window = [];
  let winner = null, terms = null;
  for (let i = 0; i < pool * pool; i++) {
    const place = { index: i, row: row * pool + Math.floor(i / pool), column: column * pool + (i % pool) };
    const found = termsOf(layer, codes, channel, place.row, place.column);
    window.push(found.reduce((total, term) => total + term.product, layer.bias ? layer.bias[channel] : 0));
    if (winner === null || window[i] > window[winner.index]) [winner, terms] = [place, found];
  }
  let total = 0;
  const running = Int32Array.from(terms, (term) => (total += term.product));
  const sum = window[winner.index];
  const story = {
    layer: layer.name, channel, row, column, sums: window, winner, terms, running,
    bias: layer.bias ? layer.bias[channel] : 0, sum,
    multiplier: null, shift: null, product: null, shifted: null, scaled: null, qmax: layer.qmax, code: sum, real: null,
  };
  if (layer.multipliers === null) return { ...story, real: sum * network.logitScale };
  const m = layer.multipliers[channel], k = layer.shifts[channel], wide = BigInt(sum) * BigInt(m);
  const shifted = (wide + (1n << BigInt(k - 1))) >> BigInt(k);
  const code = shifted < 0n ? 0 : shifted > BigInt(layer.qmax) ? layer.qmax : Number(shifted);
  const scaled = (sum * m) / 2 ** k;
  return { ...story, multiplier: m, shift: k, product: String(wide), shifted: String(shifted), scaled, code };
}

function termsOf(layer, codes, channel, row, column) {
  const [channels, height, width] = layer.inputShape, terms = [];
  const term = (c, i, j, weight) => {
    const inside = i >= 0 && i < height && j >= 0 && j < width;
    const x = inside ? codes[(c * height + i) * width + j] : 0;
    const q = weight === null ? null : layer.codes[weight], w = weight === null ? 1 : q - layer.zeroPoint;
    terms.push({ channel: c, row: i, column: j, inside, x, q, w, product: x * w });
  };
  const each = (from, to, visit) => {
    for (let c = from; c < to; c++) for (let i = 0; i < height; i++) for (let j = 0; j < width; j++) visit(c, i, j);
  };
  if (layer.kind === "average") each(channel, channel + 1, (c, i, j) => term(c, i, j, null));
  let weight = layer.kind === "average" ? 0 : channel * product(layer.shape.slice(1)); // the output's first one
  if (layer.kind === "linear") each(0, channels, (c, i, j) => term(c, i, j, weight++));
  if (layer.kind === "conv") {
    const [outputs, inGroup, rows, columns] = layer.shape, [down, right] = layer.stride, [above, left] = layer.padding;
    const first = Math.floor((channel * layer.groups) / outputs) * inGroup;
    for (let c = first; c < first + inGroup; c++) {
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) term(c, row * down - above + i, column * right - left + j, weight++);
      }
    }
  }
  return terms;
}
