"use strict";
// The integer network, in plain JavaScript: computes exactly what qattrain/integer/model.py defines. It touches no
// page: the same text runs in the page, in its worker, in Node.js and in a headless browser.
//
//   run(network, image) -> {logits, hidden, ranges}      image and codes are uint8 in the order (channel, row, column)
//   check(network, image, expected, i) -> whether they are what Python computed
//
// Sums are int32: the file's reader makes sure that none can be larger. See `requantize` for the one wide product.

/**
 * clip((acc * m + 2^(k - 1)) >> k, 0, qmax), exactly, for any int32 acc, m 0 .. 2^31 - 1, k 1 .. 62.
 *
 * acc * m has up to 62 bits, a double 53. Divided by 2^k it is v. The result is n or more where v >= n - 1/2, which is
 * a double: rounding v keeps it on its side of that number, except that a v just below may become equal to it. So the
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
