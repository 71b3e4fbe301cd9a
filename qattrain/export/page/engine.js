"use strict";
// The integer network, in plain JavaScript: reads a packed file and computes exactly what qattrain/integer/model.py
// defines. It touches no page: the same text runs in the page, in its worker, in Node.js and in a headless browser.
//
//   readPacked(bytes) -> network        network.layers describes every layer, in words of the packed file's description
//   run(network, image) -> {logits, hidden, ranges}      image and codes are uint8 in the order (channel, row, column)
//   sums(network, index, codes)         all sums of a layer before pooling, (D, H, W), bias included
//   cell(network, index, codes, output) everything that leads to one output, for people
//
// Sums are int32: the file's reader makes sure that none can be larger. See `requantize` for the one wide product.

const IMAGE_MAX = 255;
const INT32_MAX = 2147483647;
const LARGEST_MAP = 2 ** 24;
const RANGES = { biases: [-INT32_MAX, INT32_MAX], multipliers: [0, INT32_MAX], shifts: [1, 62] };
const TYPES = {
  U8: [1, "getUint8"], U16: [2, "getUint16"], U32: [4, "getUint32"],
  I8: [1, "getInt8"], I16: [2, "getInt16"], I32: [4, "getInt32"],
};

// ---- the packed file, version 2: described in qattrain/integer/packed.py

function need(fits, problem) {
  if (!fits) throw new Error(`this packed file is damaged: ${problem}`);
}

/** bytes: Uint8Array, a whole packed file -> network. Throws Error with one line if it is none, or inconsistent. */
function readPacked(bytes) {
  const { header, tensors } = readTensors(bytes);
  need(header.format_version === 2, `format version ${header.format_version} instead of 2`);
  const layers = [], at = { weights: 0, biases: 0, multipliers: 0, shifts: 0 };
  const take = (name, count) => {
    const values = tensors[name];
    need(values !== undefined && at[name] + count <= values.length, `too few ${name}`);
    at[name] += count;
    return values.subarray(at[name] - count, at[name]);
  };
  const carried = { zero_point: 0, once: [] };
  let inputs = header.input_shape, inputMax = IMAGE_MAX;
  need(Array.isArray(inputs) && inputs.length === 3 && inputs.every((n) => n >= 1), `input shape ${inputs}`);
  header.layers.forEach((entry, index) => {
    for (const name of ["bits", "quantizer", "lowest", "zero_point", "activation_bits", "once"]) {
      if (entry[name] !== undefined && entry[name] !== null) carried[name] = entry[name];
    }
    const last = index === header.layers.length - 1;
    const layer = readLayer(entry, carried, inputs, inputMax, last, take);
    layers.push(layer);
    inputs = layer.outputShape;
    inputMax = last ? 0 : layer.qmax;
  });
  need(layers.length > 0 && layers[layers.length - 1].kind === "linear", "its last layer does not give logits");
  for (const name of Object.keys(tensors)) need(at[name] === tensors[name].length, `too many ${name}`);
  const classes = layers[layers.length - 1].shape[0];
  const classNames = header.class_names || Array.from({ length: classes }, (_, i) => String(i));
  need(classNames.length === classes, `${classes} logits for ${classNames.length} classes`);
  const total = (name) => layers.reduce((sum, layer) => sum + layer[name], 0);
  return {
    name: header.name,
    dataset: header.dataset,
    classNames,
    testAccuracy: header.test_accuracy === undefined ? null : header.test_accuracy,
    inputShape: header.input_shape,
    logitScale: header.logit_scale,
    bytes: total("weightBytes"),
    totalBytes: total("totalBytes"),
    macs: total("macs"),
    layers,
  };
}

/** A safetensors file: its metadata, and its tensors as typed arrays. */
function readTensors(bytes) {
  need(bytes.length > 8, "it is too short");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = view.getUint32(0, true);
  need(view.getUint32(4, true) === 0 && 8 + length <= bytes.length, "it is too short");
  let entries, header;
  try {
    entries = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    header = JSON.parse(entries.__metadata__.qattrain);
  } catch {
    need(false, "its header cannot be read");
  }
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(entries)) {
    if (name === "__metadata__") continue;
    need(name === "weights" || name in RANGES, `a tensor ${name}`);
    need(dtype in TYPES && shape.length === 1, `${name} has type ${dtype}`);
    const [size, getter] = TYPES[dtype];
    const [start, stop] = [8 + length + offsets[0], 8 + length + offsets[1]];
    need(stop - start === size * shape[0] && start >= 8 + length && stop <= bytes.length, `${name} is cut off`);
    if (name === "weights") {
      need(dtype === "U8", `weights have type ${dtype}`);
      tensors[name] = bytes.subarray(start, stop);
      continue;
    }
    const [low, high] = RANGES[name];
    tensors[name] = new Int32Array(shape[0]);
    for (let i = 0; i < shape[0]; i++) {
      const value = view[getter](start + i * size, true);
      need(low <= value && value <= high, `${name} has ${value}; allowed: ${low} to ${high}`);
      tensors[name][i] = value;
    }
  }
  return { header, tensors };
}

const pair = (value, missing) => (Array.isArray(value) ? value : [value ?? missing, value ?? missing]);
const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

/** One layer: what the file says of it, what follows from that, and its weights laid out for `run`. */
function readLayer(entry, carried, inputs, inputMax, last, take) {
  const { name, shape = null } = entry;
  const kind = shape === null ? "average" : shape.length === 4 ? "conv" : "linear";
  const outputs = shape === null ? inputs[0] : shape[0];
  const layer = {
    name, kind, shape, inputShape: inputs, inputMax,
    bits: null, quantizer: null, lowest: null, highest: null, step: null, zeroPoint: 0, codes: null, bias: null,
    multipliers: null, shifts: null, activationBits: null, qmax: null,
    stride: pair(entry.stride, 1), padding: pair(entry.padding, 0),
    groups: entry.groups === undefined ? 1 : entry.groups, pool: entry.pool === undefined ? 1 : entry.pool,
    pixels: entry.pixels === undefined ? null : entry.pixels,
  };
  const fits = kind !== "average" || (!last && inputs[1] * inputs[2] === layer.pixels);
  need(fits, `${name} averages ${layer.pixels} pixels`);
  placeLayer(layer, outputs);
  need(product(layer.mapShape) <= LARGEST_MAP, `${name} gives a map of ${layer.mapShape}`);
  const column = (values, count) => {
    const once = kind === "average" || carried.once.includes(values);
    const found = take(values, once ? 1 : count);
    return once ? new Int32Array(count).fill(found[0]) : Int32Array.from(found);
  };
  if (kind !== "average") {
    const { bits, lowest } = carried;
    need(bits >= 1 && bits <= 8 && lowest <= 0 && lowest >= -255, `${name} has ${bits} bits from ${lowest}`);
    Object.assign(layer, { bits, lowest, quantizer: carried.quantizer, zeroPoint: carried.zero_point });
    layer.step = lowest === 1 - 2 ** bits ? 2 : 1;
    const symmetric = layer.step === 2 || lowest === 1 - 2 ** (bits - 1);
    layer.highest = symmetric ? -lowest : lowest + 2 ** bits - 1;
    layer.codes = unpackCodes(take("weights", Math.ceil((product(shape) * bits) / 8)), layer);
    layer.bias = column("biases", outputs);
  }
  if (!last) {
    const bits = carried.activation_bits;
    need(bits >= 1 && bits <= 8, `${name} gives codes of ${bits} bits`);
    layer.activationBits = bits;
    layer.qmax = 2 ** bits - 1;
    layer.multipliers = column("multipliers", outputs);
    layer.shifts = Uint8Array.from(column("shifts", outputs));
  }
  countLayer(layer, outputs, last);
  layer.fast = prepareLayer(layer, outputs);
  return layer;
}

/** Shapes: of all sums, and of the outputs after pooling. */
function placeLayer(layer, outputs) {
  const { name, kind, shape, inputShape: inputs, stride, padding, groups, pool } = layer;
  layer.mapShape = [outputs, 1, 1];
  if (kind === "linear") need(shape[1] === product(inputs), `${name} takes ${shape[1]} inputs, not ${product(inputs)}`);
  if (kind === "conv") {
    need(shape[1] * groups === inputs[0] && outputs % groups === 0, `${name} does not fit ${inputs[0]} channels`);
    const side = (axis) => Math.floor((inputs[axis] + 2 * padding[axis - 1] - shape[axis + 1]) / stride[axis - 1]) + 1;
    layer.mapShape = [outputs, side(1), side(2)];
    need(Math.min(side(1), side(2)) >= pool, `${name} does not fit a map of ${inputs[1]}x${inputs[2]}`);
  }
  const [, height, width] = layer.mapShape;
  layer.outputShape = [outputs, Math.floor(height / pool), Math.floor(width / pool)];
}

/** How large its sums can become, the register that takes, and what it costs, as `qattrain inspect` counts. */
function countLayer(layer, outputs, last) {
  layer.macs = layer.weightBytes = 0;
  if (layer.kind === "average") {
    layer.accumulatorBound = layer.pixels * layer.inputMax;
    layer.totalBytes = 5;
  } else {
    const row = layer.codes.length / outputs;
    layer.accumulatorBound = 0;
    for (let d = 0; d < outputs; d++) {
      let weights = 0;
      for (let i = d * row; i < (d + 1) * row; i++) weights += Math.abs(layer.codes[i] - layer.zeroPoint);
      const bound = weights * layer.inputMax + Math.abs(layer.bias[d]);
      layer.accumulatorBound = Math.max(layer.accumulatorBound, bound);
    }
    layer.macs = layer.codes.length * layer.mapShape[1] * layer.mapShape[2];
    layer.weightBytes = Math.ceil((layer.codes.length * layer.bits) / 8);
    layer.totalBytes = layer.weightBytes + outputs * (last ? 4 : 9);
  }
  need(layer.accumulatorBound <= INT32_MAX, `a sum of ${layer.name} is beyond int32`);
  layer.registerBits = Math.ceil(Math.log2(layer.accumulatorBound + 1)) + 1;
}

/** The codes of a layer's weights, in the order of its shape: Int16Array. */
function unpackCodes(packed, { name, shape, bits, lowest, step, highest }) {
  const codes = new Int16Array(product(shape)), mask = 2 ** bits - 1;
  for (let i = 0, bit = 0; i < codes.length; i++, bit += bits) {
    const byte = bit >> 3;
    const index = ((packed[byte] | (packed[byte + 1] << 8)) >> (bit & 7)) & mask;
    codes[i] = lowest + step * index;
    need(codes[i] <= highest, `${name} has weights beyond ${highest}`);
  }
  return codes;
}

// ---- the arithmetic

/**
 * clip((acc * m + 2^(k - 1)) >> k, 0, qmax), exactly, for any int32 acc, m 0 .. 2^31 - 1, k 1 .. 62.
 *
 * acc * m has up to 62 bits, a double 53. Divided by 2^k it is v. The result is n or more where v >= n - 1/2, which is a
 * double: rounding v keeps it on its side of that number, except that a v just below may become equal to it. So the
 * double decides, and only if it lies exactly on a half and may have been rounded, is it computed again with BigInt.
 */
function requantize(acc, m, k, qmax) {
  if (acc <= 0) return 0;
  const v = acc * (m * 2 ** -k), whole = Math.floor(v);
  if (whole >= qmax) return qmax;
  if (v - whole !== 0.5 || acc * m < 2 ** 53) return v - whole < 0.5 ? whole : whole + 1;
  return Number((BigInt(acc) * BigInt(m) + (1n << BigInt(k - 1))) >> BigInt(k));
}

const BLOCK = 4; // outputs computed at a time, their sums in registers

/**
 * What `run` needs beside the layer: room for its outputs, and its weights as q - z, laid out for `addUp`: group by
 * group, in it block by block of outputs, in it tap by tap. A last block that is not full is filled up with zeros.
 */
function prepareLayer(layer, outputs) {
  const { kind, shape, inputShape: inputs, padding, groups } = layer;
  const fast = { out: new Uint8Array(product(layer.outputShape)), padded: null };
  fast.scales = layer.multipliers && Float64Array.from(layer.multipliers, (m, c) => m * 2 ** -layer.shifts[c]);
  if (kind === "average") return fast;
  const perGroup = outputs / groups, row = layer.codes.length / outputs, blocks = Math.ceil(perGroup / BLOCK);
  fast.weights = new Int16Array(groups * blocks * row * BLOCK);
  for (let d = 0; d < outputs; d++) {
    const block = Math.floor(d / perGroup) * blocks + Math.floor((d % perGroup) / BLOCK);
    const start = block * row * BLOCK + ((d % perGroup) % BLOCK);
    for (let t = 0; t < row; t++) fast.weights[start + t * BLOCK] = layer.codes[d * row + t] - layer.zeroPoint;
  }
  fast.acc = new Int32Array(blocks * BLOCK);
  fast.best = new Int32Array(blocks * BLOCK);
  fast.found = new Int32Array(row); // codes of a window that are not 0,
  fast.places = new Int32Array(row); // and where their weights are in a block
  fast.taps = new Int32Array(row); // where a window's codes are, seen from its first one
  const height = inputs[1] + 2 * padding[0], width = inputs[2] + 2 * padding[1];
  const [channels, rows, columns] = kind === "linear" ? inputs : shape.slice(1);
  if (padding[0] || padding[1]) fast.padded = new Uint8Array(inputs[0] * height * width);
  let t = 0;
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++) fast.taps[t++] = (c * height + i) * width + j;
    }
  }
  return fast;
}

/** The sums of a group's outputs for the window that begins at `base`, without bias, into fast.acc. */
function addUp(fast, input, base, group) {
  const { taps, weights, acc, found, places } = fast, row = taps.length;
  let count = 0;
  for (let t = 0; t < row; t++) {
    const code = input[base + taps[t]];
    if (code !== 0) {
      found[count] = code;
      places[count++] = t * BLOCK;
    }
  }
  for (let d = 0, start = group * row * acc.length; d < acc.length; d += BLOCK, start += row * BLOCK) {
    let a = 0, b = 0, c = 0, e = 0;
    for (let n = 0; n < count; n++) {
      const code = found[n], w = start + places[n];
      a = (a + Math.imul(code, weights[w])) | 0;
      b = (b + Math.imul(code, weights[w + 1])) | 0;
      c = (c + Math.imul(code, weights[w + 2])) | 0;
      e = (e + Math.imul(code, weights[w + 3])) | 0;
    }
    acc[d] = a;
    acc[d + 1] = b;
    acc[d + 2] = c;
    acc[d + 3] = e;
  }
}

/**
 * image: Uint8Array (C, H, W) -> logits, Int32Array; hidden: the codes of every hidden layer after pooling, Uint8Array;
 * ranges: the smallest and largest sum in every layer, before pooling, bias included.
 */
function run(network, image) {
  const hidden = [], ranges = [];
  let x = image, logits = null;
  for (const layer of network.layers) {
    const range = [INT32_MAX, -INT32_MAX];
    ranges.push(range);
    if (layer.kind === "average") average(layer, x, range);
    else if (layer.multipliers) convolve(layer, x, range, null);
    else convolve(layer, x, range, (logits = new Int32Array(layer.shape[0])));
    if (layer.multipliers) hidden.push((x = layer.fast.out.slice()));
  }
  return { logits, hidden, ranges };
}

function withPadding(layer, x) {
  const { padded } = layer.fast;
  if (padded === null) return x;
  const [channels, height, width] = layer.inputShape, [rows, columns] = layer.padding;
  const across = width + 2 * columns, map = (height + 2 * rows) * across;
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < height; i++) {
      const from = (c * height + i) * width;
      padded.set(x.subarray(from, from + width), c * map + (i + rows) * across + columns);
    }
  }
  return padded;
}

/**
 * A convolution; a matrix product is one with a single window. Codes after pooling go into fast.out; or, with `all`,
 * every sum into that Int32Array (D, H, W), without pooling. range: [smallest, largest] sum so far, updated.
 */
function convolve(layer, x, range, all) {
  const { groups, stride, fast, bias } = layer, { acc, best, out, scales } = fast;
  const input = withPadding(layer, x), pool = all ? 1 : layer.pool;
  const [outputs, height, width] = all ? layer.mapShape : layer.outputShape;
  const across = layer.inputShape[2] + 2 * layer.padding[1];
  const plane = (layer.inputShape[1] + 2 * layer.padding[0]) * across;
  const perGroup = outputs / groups, inGroup = layer.inputShape[0] / groups;
  let [low, high] = range;
  for (let g = 0; g < groups; g++) {
    for (let oy = 0; oy < height; oy++) {
      for (let ox = 0; ox < width; ox++) {
        best.fill(-INT32_MAX);
        for (let py = oy * pool; py < oy * pool + pool; py++) {
          for (let px = ox * pool; px < ox * pool + pool; px++) {
            addUp(fast, input, g * inGroup * plane + py * stride[0] * across + px * stride[1], g);
            for (let d = 0; d < perGroup; d++) {
              const sum = (acc[d] + bias[g * perGroup + d]) | 0;
              if (sum > best[d]) best[d] = sum;
              if (sum > high) high = sum;
              if (sum < low) low = sum;
            }
          }
        }
        for (let d = 0; d < perGroup; d++) {
          const c = g * perGroup + d, place = (c * height + oy) * width + ox;
          if (all) all[place] = best[d];
          else out[place] = rounded(layer, scales[c], best[d], c);
        }
      }
    }
  }
  range[0] = low;
  range[1] = high;
}

/** `requantize` with the channel's m * 2^-k at hand. */
function rounded(layer, scale, acc, c) {
  if (acc <= 0) return 0;
  const v = acc * scale, whole = Math.floor(v), qmax = layer.qmax;
  if (whole >= qmax) return qmax;
  const rest = v - whole;
  if (rest === 0.5) return requantize(acc, layer.multipliers[c], layer.shifts[c], qmax);
  return rest < 0.5 ? whole : whole + 1;
}

/** The sum of every channel. */
function channelSums(layer, x) {
  const found = new Int32Array(layer.outputShape[0]), { pixels } = layer;
  for (let c = 0; c < found.length; c++) {
    for (let i = c * pixels; i < (c + 1) * pixels; i++) found[c] += x[i];
  }
  return found;
}

function average(layer, x, range) {
  const { out, scales } = layer.fast;
  channelSums(layer, x).forEach((sum, c) => {
    range[0] = Math.min(range[0], sum);
    range[1] = Math.max(range[1], sum);
    out[c] = rounded(layer, scales[c], sum, c);
  });
}

// ---- for people: one layer's sums, one output's whole story

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

// ---- small things that the page and its proof share

/** The class of these logits: the first of the largest. */
function winnerOf(logits) {
  return logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
}

/** base64 -> Uint8Array. */
function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

const CRC_TABLE = Int32Array.from({ length: 256 }, (_, n) => {
  for (let i = 0; i < 8; i++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

/** CRC-32 of bytes, as zlib's: 0 .. 2^32 - 1. */
function crc32(bytes) {
  let crc = -1;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Whether image i of a proof gives the logits, and hidden codes with the CRC-32s, that Python computed. */
function check(network, image, expected, i) {
  const { logits, hidden } = run(network, image);
  const same = (one, other) => one.length === other.length && one.every((value, place) => value === other[place]);
  return same(logits, expected.logits[i]) && same(hidden.map(crc32), expected.hidden[i]);
}
